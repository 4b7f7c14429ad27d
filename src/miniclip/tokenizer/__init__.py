"""Texts to token ids: CLIP's byte-level BPE, and other kinds through the tokenizers library."""

from miniclip.tokenizer.base import TextTokenizer
from miniclip.tokenizer.clip import Tokenizer
from miniclip.tokenizer.files import find_tokenizer
from miniclip.tokenizer.library import LibraryTokenizer
from miniclip.tokenizer.loading import load_tokenizer

__all__ = ["LibraryTokenizer", "TextTokenizer", "Tokenizer", "find_tokenizer", "load_tokenizer"]
