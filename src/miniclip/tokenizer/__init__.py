"""Texts to token ids: CLIP's own byte-level BPE, and any other through the tokenizers library."""

from miniclip.tokenizer.clip import TextTokenizer, Tokenizer
from miniclip.tokenizer.files import find_tokenizer
from miniclip.tokenizer.library import LibraryTokenizer
from miniclip.tokenizer.loading import load_tokenizer

__all__ = ["LibraryTokenizer", "TextTokenizer", "Tokenizer", "find_tokenizer", "load_tokenizer"]
