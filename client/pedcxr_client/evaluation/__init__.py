"""``pedcxr eval`` and ``pedcxr probe``: measure reports against references, and test a model with altered images.

``pedcxr eval`` requires the extra ``pedcxr[eval]``. It extracts findings from the text of a report with a lexicon
(``lexicon.toml``), so no model is downloaded. The results are rates with confidence intervals.
"""
