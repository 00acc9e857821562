"""Models in the format of the Hugging Face libraries.

    family.py      what a model family is: its tables of tensor names, its config.json, what it cannot express     (families: plugins/models)
    rows.py        the table rows that families share
    mapping.py     table + architecture -> which rows of which of our tensors make which of theirs; both directions read it
    stored.py      our distributed checkpoints, read region by region
    published.py   a folder of sharded safetensors: planned, written, read region by region (tensor_file.py: one file; block_scales.py: FP8)
    load.py        folder -> policy, each rank only its slices
    export.py      checkpoint -> folder, with its checks
    publish.py     policy -> a generator, in buckets (buckets.py: who sends what; checksum.py: sums that add up over shards)
    regions.py     which part of which unit a rank's parameters are
    tokenizer.py   tokenizer files; chat_template.py the conversation format

`family`, `rows` and `mapping` import no torch: model plugins name them.
"""
