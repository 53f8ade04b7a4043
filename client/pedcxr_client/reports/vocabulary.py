"""Words that tell a report from another text, and English from other languages. `validation` uses them."""

from __future__ import annotations

import re

_SELF = (
    r"(?:an?\s)?(?:\w+\s){0,2}?(?:ai|artificial\sintelligence|language\smodel|assistant|chatbot|llm|(?:med)?gemma)\b"
)
_TASKS = (
    r"(?:provide|assist|help|interpret|analy[sz]e|generate|process|create|write|give|offer|comply|fulfil|diagnose|access"
    r"|answer|view|do)\b"
)
REFUSAL = re.compile(
    rf"""
    (?: \A | (?<=[.!?:\n]) ) [\s"'*_\#>-]{{0,9}}
    (?: (?:i['’]?\s?a?m|we\s?['’]?a?re) \s (?:\w+\s)? (?:sorry|afraid) \b
      | (?:(?:my|our|sincere)\s)* apolog(?:ies|i[sz]e) \b | i\sapologi[sz]e \b | (?:sorry|oops) \b
      | (?:unfortunately|regrettably) ,? \s (?:i|we) \b
      | (?:as|being) \s {_SELF} | (?:i['’]?\s?a?m|i\swas) \s (?:just\s|only\s)? {_SELF}
      | (?:i['’]?\s?a?m|we\sare) \s (?:un|not\s)able \s to \s {_TASKS}
      | (?:i['’]?\s?a?m|we\sare) \s not
        \s (?:qualified|allowed|permitted|licensed|an?\s\w*\s?(?:doctor|radiologist|physician)) \b
      | (?:i|we) \s (?:can\s?not|can['’]?t|could\snot|couldn['’]?t|will\snot|won['’]?t) \s {_TASKS}
      | (?:i|we) \s (?:do\snot|don['’]?t) \s have
        \s (?:the\s(?:ability|capability)|access|enough|sufficient|an?\s(?:image|film)) \b
      | please \s (?:provide|upload|share|attach|send|note\sthat\si) \b
      | (?:how|what) \s (?:can|may) \s i \b | no \s image \s (?:was|is|has) \b
    )""",
    re.IGNORECASE | re.VERBOSE,
)
"""A sentence in which the model declines, describes itself or asks for something, unlike "I cannot exclude"."""

THOUGHTS = re.compile(r"<unused9[45]>|</?think(?:ing)?>|\A\s*thought\s*\n", re.IGNORECASE)
"""The marks around the thoughts of MedGemma 1.5 and of other models that think aloud."""

MARKUP = re.compile(r"```|\A\s*(?:\{\s*[\"'}]|\[\s*[\"{\]]|<[a-z!?])|</[a-z]\w*>", re.IGNORECASE)
"""Fenced text, JSON, HTML and XML."""

HEADING = re.compile(
    r"^[^\w\n]{0,9}(?:findings?|impressions?|conclusions?|report|comparison|indication|technique|exam(?:ination)?|view)"
    r"[^\w\n:]{0,9}(?::|$)",
    re.IGNORECASE | re.MULTILINE,
)
"""A heading. It states nothing about a film."""

STATEMENT = re.compile(
    r"""\b(?:
    normal|clear|changes?\b|unremarkable|negative|stable|unchanged|active|acute|diseases?\b|abnormal|intact|symmetric|resolv|improv|worse
    |consolidat|opaci|infiltrat|effusion|pneumo(?!log)|hydropneumo|h[ae]+mothora|empyem|atelect|collaps|o?edema|congest|cephali
    |cardiomegal|enlarg|hyperinflat|hyperexpan|hypoinflat|hypoventil|(?:well\W|under|over)?(?:inflat|expan|aerat)|low\slung
    |nodul|mass(?:es)?\b|granulom|lesion|tumou?r|metasta|cyst|cavit|abscess|lucen|densit|shadow|haz|reticul|interstit
    |airspace|air\sspace|bronchi[ot]|bronchogram|thicken|fibro|scar|emphysem|calcif|fractur|dislocat|degenerat|osteo|scolio
    |kypho|sclero|hernia|eventrat|elevat|blunt|tortuo|ectasi|atheroscl|widen|prominen|displac|deviat|shift|rotated|dextro
    |situs|thymus|thymic|adenopath|lymphadeno|tubes?\b|catheter|lines?\b|picc\b|pacemaker|clips?\b|wires?\b|foreign\sbod
    |leads?\b|hardware|orthop|paralys|injur|infect|copd\b|\w+\sfindings?\b|tubercul|sarcoid|croup|rickets|within\s(?:normal\s)?limits|small|large|tiny|mild|moderate|severe
    )""",
    re.IGNORECASE | re.VERBOSE,
)
"""A word that states a finding or its absence."""

ANATOMY = re.compile(
    r"\b(?:lungs?|pulmon|hear?t|cardi|mediastin|pleura|hil(?:a|ar|um)\b|diaphragm|costophren|trachea|bronch|aort|ribs?\b"
    r"|bon[ey]|skelet|osseous|spine|vertebr|clavicle|lobes?\b|zones?\b|vascul|silhouette|contour|airways?\b)",
    re.IGNORECASE,
)
"""A part of the chest. A sentence about one is a statement."""

_ENGLISH = """
    the is are of and with there within without or has have seen this which from be not was for at by an that no lungs
    lung heart clear size right left upper lower lobe chest disease acute unremarkable enlarged mild small
    large limits evidence
"""
ENGLISH = frozenset(_ENGLISH.split())
"""Frequent words of English reports, and of short ones such as "Lungs clear"."""

STOP_WORDS: dict[str, frozenset[str]] = {
    name: frozenset(words.split())
    for name, words in {
        "cs": "je jsou není bez nález plíce srdce obou",
        "da": "og ikke uden ingen af er hjertet lungerne med",
        "de": "der und ist nicht mit keine kein keinen eine einer sind auf von bei oder beidseits ohne herz lunge",
        "es": "el los las del una sin con por hay ambos se pulmones corazón derecho izquierdo signos",
        "fi": "ei ja ovat eivät keuhkot sydän",
        "fr": "le les une est et pas sans dans avec sur aux sont du des poumons cœur droit gauche",
        "hr": "je su bez nema obje pluća srce uredna",
        "hu": "az és nem nincs egy mindkét tüdő szív",
        "id": "dan tidak yang dengan tampak jantung paru kedua",
        "it": "il gli della dei delle del non nel nella sono senza di con polmoni cuore destro sinistro",
        "nl": "het een niet geen van zijn longen hart en beide",
        "no": "og ikke uten ingen av er hjertet lungene med",
        "pl": "nie jest są bez oraz się płuca serce prawego lewego zmian",
        "pt": "os não sem com uma são dos das pulmões coração direito esquerdo há em",
        "ro": "și si nu este sunt în fără fara cu din plămânii cordul drept stâng leziuni",
        "sv": "och inte utan inga är av lungorna hjärtat med",
        "tr": "ve bir ile olarak yoktur vardır izlenmedi mevcut değil akciğer kalp sağ sol",
        "vi": "không và có phổi bình thường tim hai",
    }.items()
}
"""Frequent words of other languages in the Latin script. None is frequent in English reports."""

SCRIPTS = {
    "ARABIC": "und-Arab", "BENGALI": "bn", "CJK": "zh", "CYRILLIC": "und-Cyrl", "DEVANAGARI": "und-Deva", "GREEK": "el",
    "HANGUL": "ko", "HEBREW": "he", "HIRAGANA": "ja", "KATAKANA": "ja", "TAMIL": "ta", "THAI": "th",
}  # fmt: skip
"""RFC 5646 tag of each script: a language if the script has one, else the script."""

LANGUAGE_NAMES = {
    "bn": "Bengali", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek", "en": "English", "es": "Spanish",
    "fi": "Finnish", "fr": "French", "he": "Hebrew", "hr": "Croatian", "hu": "Hungarian", "id": "Indonesian",
    "it": "Italian", "ja": "Japanese", "ko": "Korean", "nl": "Dutch", "no": "Norwegian", "pl": "Polish",
    "pt": "Portuguese", "ro": "Romanian", "sv": "Swedish", "ta": "Tamil", "th": "Thai", "tr": "Turkish",
    "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip
"""The name of each language that `validation.language` returns; other tags are undetermined."""
