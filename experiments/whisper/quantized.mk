# Whisper's encoder quantized after training, by this toolkit and by others, read by Whisper's own decoder: table.md.
#
#   make -j 2 -f experiments/whisper/quantized.mk WEIGHTS=whisper-base DECODER=whisper-base-ct2 SPEECH=librispeech OUTPUT=runs/quantized
#
# WEIGHTS  folder of openai/whisper-base with model.safetensors and config.json
# DECODER  the same model as ct2-transformers-converter writes it
# SPEECH   folder with train-clean-100/, test-other/ and transcripts.tsv (lines of path, tab, text)
# OUTPUT   folder; what is there already is not made again
# EVERY    recordings of train-clean-100 with a text that are read: every third where not given, 1 for all of them
# PYTHON   of an environment with nncf, openvino, onnx and onnxruntime, for the others' files; left out without it
# Each job has one thread: as many jobs as cores (-j) are the quickest.
OUTPUT ?= runs/whisper-quantized
EVERY ?= 3
SPEECH_FOLDER := $(abspath $(SPEECH))
HERE := $(dir $(lastword $(MAKEFILE_LIST)))
SETS := train-clean test-other
export OMP_NUM_THREADS := 1
.DELETE_ON_ERROR:

# name of an encoder: options of ssql quantize
GROUPS := --policy.activation_range per_token --policy.granularity per_group_64 --policy.layers '{"conv2": "/per_channel"}'
quantize_tokens := --bit_width '[w8a8, w4a8]'
quantize_chosen := --bit_width w8a8 --rounding outputs
quantize_nearest := --bit_width w4a8 --rounding nearest
quantize_groups := --bit_width w4a8 $(GROUPS)
quantize_low := --bit_width '[w3a8, w2a8, w4a4]'
quantize_attention := --bit_width w8a8 --policy.activation_range per_token --policy.attention true
quantize_static := --bit_width '[w8a8, w4a8]' --policy.smooth true
ENCODERS := low static tokens groups attention chosen nearest

# name of a reading: what is read (name in the table, folder or file), at which bit-widths, files in which runtime
read_eight := nearest=tokens chosen=chosen attention=attention static=static
read_four := chosen=tokens nearest=nearest groups=groups static=static
read_low := chosen=low
# Each reading of files has the fp32 file first: what the others lose is counted from it. NNCF's files do not run in ONNX
# Runtime, and ONNX Runtime's static one not with the options that have it computed exactly: OpenVINO reads them.
read_dynamic := full_precision=files/encoder-fp32.onnx dynamic=files/dynamic.onnx
read_others := full_precision=files/encoder-fp32.onnx nncf_int8=files/nncf-int8.onnx nncf_int4=files/nncf-int4.onnx static=files/static.onnx
bits_eight := [fp, w8a8]
bits_four := [w4a8]
bits_low := [w3a8, w2a8, w4a4]
bits_dynamic := [fp]
bits_others := [fp]
runtime_others := openvino_f32
READINGS := eight four low ctranslate2 $(if $(PYTHON),others dynamic)

all: $(OUTPUT)/table.md

# Calibration: recordings of train-clean-100 without a text. Test: all of test-other, and those of train-clean-100 with a text.
$(OUTPUT)/clips:
	test -n "$(WEIGHTS)" -a -n "$(DECODER)" -a -n "$(SPEECH)" || { echo "give WEIGHTS, DECODER and SPEECH" >&2; exit 2; }
	mkdir -p $(OUTPUT)/calibration $(SETS:%=$(OUTPUT)/%)
	find "$(SPEECH_FOLDER)/train-clean-100" -type f | LC_ALL=C sort | while read -r file; do \
	  grep -qF "$${file#$(SPEECH_FOLDER)/}" "$(SPEECH_FOLDER)/transcripts.tsv" || ln -sf "$$file" $(OUTPUT)/calibration/; \
	done
	grep '^test-other/' "$(SPEECH_FOLDER)/transcripts.tsv" > $(OUTPUT)/test-other.lines
	grep '^train-clean-100/' "$(SPEECH_FOLDER)/transcripts.tsv" | awk 'NR % $(EVERY) == 1 % $(EVERY)' > $(OUTPUT)/train-clean.lines
	for set in $(SETS); do \
	  while IFS="$$(printf '\t')" read -r path text; do \
	    ln -sf "$(SPEECH_FOLDER)/$$path" $(OUTPUT)/$$set/; \
	    printf '%s\t%s\n' "$$(basename "$$path")" "$$text"; \
	  done < $(OUTPUT)/$$set.lines > $(OUTPUT)/$$set.tsv; \
	done
	touch $@

$(OUTPUT)/encoder: | $(OUTPUT)/clips
	ssql import --weights "$(WEIGHTS)" --layout whisper --output $@

$(ENCODERS:%=$(OUTPUT)/%): | $(OUTPUT)/encoder
	ssql quantize --encoder $(OUTPUT)/encoder --output $@ $(quantize_$(@F)) --data AudioFolder \
	  --data.root $(OUTPUT)/calibration --data.labels null --data.max_seconds 30 > $@.txt 2>&1 || { cat $@.txt; exit 1; }

# Of NAME=PLACE: the place, and a line of JSON.
place_of = $(OUTPUT)/$(lastword $(subst =, ,$(1)))
encoder_of = "$(firstword $(subst =, ,$(1)))":"$(place_of)"
empty :=
comma_and_space := $(empty), $(empty)
define reading
$(OUTPUT)/$(1)-$(2)/accuracy.json: | $$(OUTPUT)/encoder $$(foreach each,$$(read_$(1)),$$(call place_of,$$(each)))
	ssql evaluate --encoders '{$$(subst $$(empty) $$(empty),$$(comma_and_space),$$(foreach each,$$(read_$(1)),$$(call encoder_of,$$(each))))}' \
	  --bit_widths '$$(bits_$(1))' --runtime $$(or $$(runtime_$(1)),onnxruntime) --reader WhisperDecoder \
	  --reader.folder "$$(DECODER)" --data AudioFolder --data.root $$(OUTPUT)/$(2) --data.labels null \
	  --data.texts $$(OUTPUT)/$(2).tsv --data.test_pattern . --data.max_seconds 40 --data.batch_size 4 \
	  --output $$(OUTPUT)/$(1)-$(2) > $$(OUTPUT)/$(1)-$(2).txt 2>&1 || { cat $$(OUTPUT)/$(1)-$(2).txt; exit 1; }
endef
$(foreach name,$(filter-out ctranslate2,$(READINGS)),$(foreach set,$(SETS),$(eval $(call reading,$(name),$(set)))))

$(SETS:%=$(OUTPUT)/ctranslate2-%/accuracy.json): $(OUTPUT)/ctranslate2-%/accuracy.json: | $(OUTPUT)/encoder
	python $(HERE)ctranslate2_int8.py $(OUTPUT)/encoder "$(DECODER)" $(OUTPUT)/$* $(OUTPUT)/$*.tsv $(OUTPUT)/ctranslate2-$*

$(OUTPUT)/files/encoder-fp32.onnx: | $(OUTPUT)/encoder
	ssql export --encoder $(OUTPUT)/encoder --bit_width fp --output $(OUTPUT)/files

$(OUTPUT)/calibration.npz: | $(OUTPUT)/encoder
	python $(HERE)calibration_arrays.py $(OUTPUT)/encoder $(OUTPUT)/calibration $@

OTHERS := $(addprefix $(OUTPUT)/files/,dynamic.onnx nncf-int8.onnx nncf-int4.onnx static.onnx)
$(OTHERS) &: | $(OUTPUT)/files/encoder-fp32.onnx $(OUTPUT)/calibration.npz
	"$(PYTHON)" $(HERE)others.py $(OUTPUT)/files/encoder-fp32.onnx $(OUTPUT)/calibration.npz $(OUTPUT)/files

RESULTS := $(foreach name,$(READINGS),$(SETS:%=$(OUTPUT)/$(name)-%/accuracy.json))
$(OUTPUT)/table.md: $(RESULTS)
	python $(HERE)quantized_table.py $(OUTPUT) $(READINGS) > $@
	cat $@
