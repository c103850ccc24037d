# What Whisper's encoder still tells beside words at each bit-width: linear heads on its features, table.md.
#
#   make -j 2 -f experiments/whisper/probes.mk ENCODERS="post-training=runs/tiny.en-quantized SSQL=runs/distilled/encoder" \
#     PEOPLE=speechocean762 PROMPTS=prompts SOUNDS=esc10 OUTPUT=runs/probes PYTHON=others/bin/python
#
# ENCODERS  name=folder of encoders with the bit-widths of WIDTHS, or WIDTHS_name
# PEOPLE, PROMPTS, SOUNDS  folders of recordings: probe_labels.py
# PYTHON    of an environment with numpy, soundfile and praat-parselmouth
# What is measured are exported files, in OpenVINO at the precision that is fastest on the processor.
OUTPUT ?= runs/probes
WIDTHS ?= fp w8a8 w4a8 w3a8 w2a8
HERE := $(dir $(lastword $(MAKEFILE_LIST)))
PARTS := people speakers languages sounds prosody
people := $(PEOPLE)
speakers := $(PEOPLE)
languages := $(PROMPTS)
sounds := $(SOUNDS)
export OMP_NUM_THREADS := 1
.DELETE_ON_ERROR:

all: $(OUTPUT)/table.md

$(OUTPUT)/labels/people.csv:
	"$(PYTHON)" $(HERE)probe_labels.py "$(PEOPLE)" "$(PROMPTS)" "$(SOUNDS)" $(@D)

empty :=
comma_and_space := $(empty), $(empty)
list = $(subst $(empty) $(empty),$(comma_and_space),$(strip $(1)))
name_of = $(firstword $(subst =, ,$(1)))
folder_of = $(lastword $(subst =, ,$(1)))
widths_of = $(or $(WIDTHS_$(call name_of,$(1))),$(WIDTHS))

# One file for each bit-width: encoder-fp32.onnx, encoder-int8.onnx, ...
define exported
$(OUTPUT)/files/$(call name_of,$(1))/README.md:
	ssql export --encoder $(call folder_of,$(1)) --output $$(@D) --bit_width '[$(call list,$(call widths_of,$(1)))]' --input waveform \
	  --bench false > $(OUTPUT)/$(call name_of,$(1)).txt 2>&1 || { cat $(OUTPUT)/$(call name_of,$(1)).txt; exit 1; }
endef
$(foreach each,$(ENCODERS),$(eval $(call exported,$(each))))

file_of = $(OUTPUT)/files/$(1)/encoder-$(subst w4a8,int4,$(subst w8a8,int8,$(subst fp,fp32,$(2)))).onnx
files := $(foreach each,$(ENCODERS),$(foreach width,$(call widths_of,$(each)),"$(call name_of,$(each))@$(width)":"$(call file_of,$(call name_of,$(each)),$(width))"))
data_prosody := --data SpokenProsody --data.train_size 600 --data.test_size 200
data_of = $(or $(data_$(1)),--data AudioFolder --data.root "$($(1))" --data.labels $(OUTPUT)/labels/$(1).csv --data.max_seconds 30)

$(PARTS:%=$(OUTPUT)/%/accuracy.json): $(OUTPUT)/%/accuracy.json: | $(OUTPUT)/labels/people.csv $(foreach each,$(ENCODERS),$(OUTPUT)/files/$(call name_of,$(each))/README.md)
	ssql evaluate --encoders '{$(call list,$(files))}' --runtime openvino $(call data_of,$*) --data.batch_size 4 \
	  --output $(OUTPUT)/$* > $(OUTPUT)/$*.txt 2>&1 || { cat $(OUTPUT)/$*.txt; exit 1; }

$(OUTPUT)/table.md: $(PARTS:%=$(OUTPUT)/%/accuracy.json)
	python $(HERE)probes_table.py $(OUTPUT) $(PARTS) > $@
	cat $@
