"""Decoded bytes ↔ stored bytes, lossless, one chunk at a time.

Rule: decoding allocates by the length that the caller expects, and every malformed input is CodecError.
"""

from modelfs.codecs.codec import Codec, CodecError
from modelfs.codecs.registry import codec_named, encode_chunk

__all__ = ["Codec", "CodecError", "codec_named", "encode_chunk"]
