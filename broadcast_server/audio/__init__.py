"""Everything that touches sound files: sandboxed decoding, levelling, assets, feeds' PCM, speech."""
