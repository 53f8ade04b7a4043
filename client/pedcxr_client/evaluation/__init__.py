"""``pedcxr eval``: how well a run's reports agree with the references. Needs the extra ``pedcxr[eval]``.

What a report says is decided by a lexicon of findings and the rules of negation around them, both data in
``lexicon.toml``; no model is downloaded. What comes out are rates with their intervals, never a judgement.
"""
