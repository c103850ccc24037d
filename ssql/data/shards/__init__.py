"""Shards: plain tar files in WebDataset's layout with an index beside each, written by `ssql pack`.

    SHARDS/train-000000.tar     000000000.ogg, 000000000.json, 000000001.ogg, ...: files as they were, and what is known
    SHARDS/train-000000.jsonl   a line of the shard (its hash, what was left out), then one for each clip or image in it
    SHARDS/index.json           written last: counts, seconds, names of labels, hash of each shard

A tar file is not compressed, so that whoever knows where a file begins in it reads that one alone. Any item is reached
at once, as in a folder: order, division over processes and resuming are those of `ssql.data.sampler`.
"""
