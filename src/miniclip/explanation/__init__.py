"""Explanations of a similarity, and measures of their faithfulness."""

from miniclip.explanation.explain import Explanation, explain
from miniclip.explanation.faithfulness import faithfulness, pointing_game, sanity
from miniclip.explanation.overlay import plot_explanation
from miniclip.explanation.word_faithfulness import word_faithfulness

__all__ = [
    "Explanation",
    "explain",
    "faithfulness",
    "plot_explanation",
    "pointing_game",
    "sanity",
    "word_faithfulness",
]
