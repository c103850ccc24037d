"""An encoder at a bit-width becomes an ONNX file, verified against torch and measured."""
