"""The words and codes of a header that state a chest, another body part, or an animal. Data only.

Every word is in lower case and without accents, because `elements.fold` writes texts so. A leading or trailing ``*``
stands for further letters: ``thora*`` matches "thoracic". A word without it matches whole words only.
docs/films.md has the same words as tables.
"""

import re

SERIES_ELEMENTS = ("BodyPartExamined", "AnatomicRegionSequence", "SeriesDescription", "ProtocolName")
"""The elements that state a body part for the series, in the order in which they are read."""

STUDY_ELEMENTS = (
    "StudyDescription", "PerformedProcedureStepDescription", "PerformedProtocolCodeSequence",
    "RequestedProcedureDescription", "ProcedureCodeSequence", "RequestedProcedureCodeSequence",
    "RequestAttributesSequence",
)  # fmt: skip
"""The elements that state a body part for the study or the procedure. They count only if the series states none."""

REQUEST_ELEMENTS = (
    "RequestedProcedureDescription", "ScheduledProcedureStepDescription", "RequestedProcedureCodeSequence",
    "ScheduledProtocolCodeSequence",
)  # fmt: skip
"""The elements of an item of RequestAttributesSequence that are read."""

SITE_ELEMENTS = (
    "InstitutionName", "InstitutionalDepartmentName", "StationName", "Manufacturer", "ManufacturerModelName",
    "DetectorDescription",
)  # fmt: skip
"""The elements about the site and the device, which are searched for veterinary words."""

EXAMINATION_ELEMENTS = (
    "AcquisitionDeviceProcessingDescription", *SERIES_ELEMENTS, *STUDY_ELEMENTS,
)  # fmt: skip
"""The elements about the examination, which are searched for veterinary words and for animals."""

NO_PART = ("", "UNKNOWN", "OTHER", "NONE", "UNDEFINED", "UNSPECIFIED")
"""The values of BodyPartExamined that state no body part."""

CHEST = {
    "English": ("chest", "cxr", "thora*", "lung", "lungs", "pulm*"),
    "Romanian": ("torac*", "torax", "plaman*", "pulm*"),
    "Spanish": ("torax", "torac*", "pecho", "pulm*"),
    "French": ("thora*", "poumon*", "pulm*", "poitrine"),
    "German": ("thora*", "brust", "brustkorb", "brustorgane", "lunge", "lungen", "lungenaufnahme"),
    "Polish": ("piersiow*", "klp", "pluc", "pluca"),
    "Portuguese": ("torax", "torac*", "peito", "pulm*"),
    "Italian": ("torac*", "polmon*"),
    "Russian": ("грудн* клетк*", "грудн* полост*", "грудь", "огк", "легк*"),
    "Greek": ("θωρακ*", "θωραξ", "πνευμον*"),
    "Chinese": ("*胸部*", "*胸片*", "*胸廓*", "*胸正*", "*胸侧*", "*胸側*", "*胸腹*", "*肺*"),
}
"""The words for the chest by language."""

PARTIAL = {"babygram": ("babygram*",), "hemithorax": ("hemithora*", "hemitora*")}
"""Words for a film that shows the chest, but not only or not all of it."""

CHEST_CODES = ("816094009", "51185008", "T-D3000", "43799004", "T-D3200", "39607008", "T-28000")
"""The codes of AnatomicRegionSequence for the chest, the chest cavity and the lung (PS3.16 CID 4031 and annex L).

SNOMED CT replaced 51185008 by 816094009. The codes that begin with a letter are the SNOMED-RT codes of older files.
"""

WIDE_CODES = {
    "416550000": "abdomen", "R-FAB55": "abdomen", "416775004": "abdomen", "R-FAB56": "abdomen",
    "417437006": "neck", "R-FAB52": "neck", "416152001": "neck", "R-FAB53": "neck", "416319003": "neck",
    "R-FAB54": "neck",
}  # fmt: skip
"""The codes for the chest together with another part, and that part (PS3.16 CID 4031)."""

OTHER_PARTS = {
    "abdomen": (
        "abd", "abdom*", "abdpelv*", "kub", "belly", "bauch", "vientre", "brzuch*", "jam* brzuszn*", "thoracoabd*",
        "живот*", "брюшн*", "κοιλια*", "*腹*",
    ),
    "spine": (
        "spine", "spinal", "cervic*", "tspine", "lspine", "cspine", "tlspine", "lsspine", "dspine", "scolio*",
        "skolio*", "vertebr*", "coloan*", "columna", "coluna", "colonna", "colonne", "rachis", "rachide", "wirbel*",
        "bws", "hws", "lws", "kregoslup*", "lumba*", "lumbo*", "lombaire*", "lombar*", "sacrum", "coccyx",
        "позвоноч*", "σπονδυλ*", "*脊*", "*胸椎*", "*腰椎*", "*颈椎*",
    ),
    "neck": ("neck", "cuello", "cou", "hals", "szyj*", "szyi", "pescoco", "collo", "шея", "шеи", "*颈部*"),
    "ribs": (
        "rib", "ribs", "coaste", "costal", "costales", "costilla*", "rippe*", "zebra", "zeber", "costela*", "costole",
        "ребр*", "πλευρ*", "*肋*",
    ),
    "sternum": ("sternum", "sternal", "sternoclav*", "brustbein", "mostek", "грудин*", "στερν*", "*胸骨*"),
    "clavicle": ("clavic*", "schlusselbein", "schluesselbein", "obojczyk*", "ключиц*", "κλειδ*", "*锁骨*"),
    "shoulder": (
        "shoulder*", "scapula", "umar", "umarul", "hombro*", "epaule*", "schulter*", "barku", "ombro*", "spalla",
        "плеч*", "ωμοσ", "ωμου", "*肩*",
    ),
    "pelvis": ("pelvi*", "bazin", "becken*", "bassin", "miednic*", "bacino", "таз", "λεκαν*", "*骨盆*"),
    "hip": (
        "hip", "hips", "sold", "soldului", "cadera*", "hanche*", "hufte*", "huefte*", "biodr*", "quadril", "anca",
        "тазобедр*", "ισχι*", "*髋*",
    ),
    "thigh": ("femur*", "thigh", "coapsa", "muslo", "cuisse", "oberschenkel*", "coscia", "бедр*", "μηρ*", "*股骨*"),
    "knee": (
        "knee", "knees", "patell*", "genunchi*", "rodilla*", "genou*", "knie*", "kolan*", "joelho*", "ginocchi*",
        "колен*", "γονατ*", "*膝*",
    ),
    "leg": (
        "leg", "legs", "tibia*", "fibula*", "gamba", "pierna*", "jambe*", "unterschenkel*", "podudzi*", "perna",
        "голен*", "κνημ*", "*小腿*",
    ),
    "ankle": (
        "ankle*", "glezna", "tobillo*", "cheville*", "sprunggelenk*", "tornozelo*", "caviglia", "голеностоп*",
        "ποδοκνημ*", "*踝*",
    ),
    "foot": (
        "foot", "feet", "toe", "toes", "calcane*", "picior*", "pied", "pieds", "fuss", "stopy", "piede", "piedi",
        "стоп*", "ποδι*", "*足部*",
    ),
    "hand": (
        "hand", "hands", "finger*", "thumb", "bone age", "mana", "mano", "manos", "mains", "dlon*", "кист*", "χερι*",
        "*手部*", "*手指*",
    ),
    "wrist": (
        "wrist*", "carp*", "muneca", "poignet*", "handgelenk*", "nadgarst*", "punho", "polso", "запяст*", "*腕*",
    ),
    "forearm": (
        "forearm*", "radius", "ulna", "antebrat", "antebra*", "avant bras", "unterarm*", "przedrami*", "avambraccio",
        "предплеч*", "αντιβραχ*", "*前臂*",
    ),
    "elbow": (
        "elbow*", "cotului", "codo", "coude*", "ellbogen*", "ellenbogen*", "lokiec", "cotovelo*", "gomito", "локт*",
        "αγκων*", "*肘*",
    ),
    "arm": ("upper arm", "humer*", "brazo", "oberarm*", "ramienn*", "braccio", "βραχιον*", "*肱骨*"),
    "head": (
        "skull", "head", "cranio", "cranial", "craniu", "craneo", "crane", "schadel*", "schaedel*", "czaszk*",
        "череп*", "κρανι*", "*头颅*", "*头部*", "*頭部*", "*颅*", "sinuses", "mandib*", "orbit*", "nasal bone*",
        "nose", "adenoid*", "cavum", "dental", "brain", "eye",
    ),
    "breast": ("breast*", "mammo*", "*乳腺*", "*乳房*"),
    "limb": ("extremit*", "extremety", "extremidad*", "upper limb", "lower limb", "membru*", "konczyn*"),
    "whole body": ("whole body", "wholebody", "entire body", "skeletal survey", "bone survey"),
}  # fmt: skip
"""The words for other body parts. The keys are the names that a reason shows."""

ADJOINING = ("abdomen", "spine", "neck", "ribs", "sternum", "clavicle", "shoulder")
"""The parts that one film can show together with the chest."""

_THORACIC = r"(?:thora|tora[ckx]|dors|brust|piersiow|грудн|θωρακ)\w*"
_SEGMENT = r"(?: (?:odc|segment|отдел|μοιρ)\w*)?"
_SPINE = (
    r"(?:spine|vertebr\w*|coloan\w*|columna|coluna|colonna|colonne|rachis|rachide|wirbel\w*|kregoslup\w*|позвоноч\w*"
    r"|σπονδυλ\w*)"
)
THORACIC_SPINE = re.compile(
    rf"\b(?:{_THORACIC}{_SEGMENT} {_SPINE}|{_SPINE}{_SEGMENT} {_THORACIC}|грудн\w* отдел\w*|[td] spine|thoracolumb\w*"
    r"|toracolomb\w*|dorsolumb\w*|brustwirbel\w*|гоп|θμσσ)"
)
"""The thoracic spine. Its adjective does not state a chest."""

NOT_A_PART = re.compile(
    r"\bhead (?:first|up|elevated|end)\b|\bhead of bed\b|\bfeet first\b|\b\d+ f(?:oo|ee)t\b|\bhand (?:held|carried)\b"
)
"""Phrases for a position or a distance that contain the name of a part."""

VETERINARY = {
    "English": (
        "*veterin*", "vet clinic", "vet hospital", "vetmed", "animal", "animals", "pet hospital", "pet clinic",
        "canine", "feline", "equine",
    ),
    "Romanian": ("*veterin*", "animale", "animalelor"),
    "Spanish": ("*veterin*", "animales", "canino", "canina", "felino", "felina"),
    "French": ("*veterin*", "animaux", "canin"),
    "German": (
        "*veterin*", "tierarzt*", "tieraerzt*", "tierklinik*", "tierspital*", "tiermedizin*", "kleintier*",
        "pferdeklinik*",
    ),
    "Polish": ("*weteryn*", "zwierzat", "zwierzeta"),
    "Portuguese": ("*veterin*", "animais"),
    "Italian": ("*veterin*", "animali"),
    "Russian": ("*ветерин*", "ветклиник*", "животн*"),
    "Greek": ("*κτηνιατρ*", "ζωων"),
    "Chinese": ("*兽医*", "*獸醫*", "*动物*", "*動物*", "*宠物*"),
}  # fmt: skip
"""Words that state an animal in any text about the site, the device or the examination."""

ANIMALS = {
    "English": (
        "dog", "dogs", "puppy", "cats", "kitten", "horse", "pony", "foal", "rabbit", "ferret", "guinea pig", "sheep",
        "goat", "swine",
    ),
    "Romanian": ("caine", "caini", "pisica", "pisici", "iepure"),
    "Spanish": ("perro", "perra", "perros", "gato", "gata", "gatos", "caballo", "conejo"),
    "French": ("chien", "chienne", "chat", "chats", "cheval", "lapin"),
    "German": ("hund", "hunde", "hundin", "huendin", "katze", "katzen", "pferd", "kaninchen", "meerschweinchen"),
    "Polish": ("kota", "kotka", "szczenie", "krolik"),
    "Portuguese": ("cao", "cachorro", "gato", "gata", "cavalo", "coelho"),
    "Italian": ("cane", "cani", "gatto", "gatta", "gatti", "cavallo", "coniglio"),
    "Russian": ("собак*", "кошк*", "кот", "щенок", "лошад*", "кролик*"),
    "Greek": ("σκυλ*", "γατα", "γατασ", "γατοσ", "αλογο"),
    "Chinese": ("*犬*", "*狗*", "*猫*", "*兔*"),
}  # fmt: skip
"""Words that state an animal in a text about the examination. Names of sites and devices may hold them.

Words that texts about children hold are absent: "cat" and "pet" (scanners), "pies" (Spanish for feet), "calf" (of the
leg), "cow" (a trolley), "bovine" and "porcine" (an aortic arch, a valve), "bird" (a lung disease), "pigeon" (a chest).
"""

NOT_AN_ANIMAL = re.compile(r"\bdog (?:bites?|ear)\b|\b(?:non|no) animals?\b|\bcanine (?:tooth|teeth|fossa)\b")
"""Phrases about humans that contain the name of an animal."""

HUMAN = (
    "homo sapiens", "homo sapiens sapiens", "homo sapiens organism", "human", "humans", "human being", "om", "uman",
    "humano", "humain", "mensch", "czlowiek", "umano", "человек", "ανθρωποσ", "人", "人类",
)  # fmt: skip
"""The texts of PatientSpeciesDescription and of the meaning of PatientSpeciesCodeSequence that state a human."""

HUMAN_CODES = ("337915000", "L-85003")
"""The codes of PatientSpeciesCodeSequence for Homo sapiens in SNOMED CT and SNOMED-RT (PS3.16 CID 7454)."""

FAMILY_ROLES = ("PARENT", "GUARDIAN", "SIBLING", "RELATIVE", "SPOUSE", "CHILD", "CUSTODIAN")
ANIMAL_ROLES = ("OWNER", "VETERINARIAN")
"""The values of ResponsiblePersonRole of a child and of an animal (PS3.3 section C.7.1.1.1.3)."""

# The letters that have no canonical decomposition (Unicode Standard, chapter 2.12).
LETTERS = str.maketrans({"ł": "l", "đ": "d", "ø": "o", "æ": "ae", "œ": "oe", "ı": "i"})
JOINED = re.compile(
    r"\b(abdomen|abd|neck|ped|paed|portable|port|rx|xr|cr|dx|ap|pa|lat)?(chest(?!er|nut)|thorax|torax)(?=\w)"
    r"|\b(abdomen|abd|neck|ped|paed|portable|port|rx|xr|cr|dx|ap|pa|lat)(chest|thorax|torax)\b"
)
"""A word for the chest that is joined to another word, as in CHESTPA, PEDCHEST and CHESTABDOMEN."""

CHEST_WORDS, PARTIAL_WORDS, OTHER_WORDS, VETERINARY_WORDS, ANIMAL_WORDS = (
    re.compile(
        "|".join(
            "("
            + "|".join(
                ("" if word.startswith("*") else r"\b")
                + word.strip("*").replace("* ", r"\w* ")
                + ("" if word.endswith("*") else r"\b")
                for word in words
            )
            + ")"
            for words in table.values()
        )
    )
    for table in (CHEST, PARTIAL, OTHER_PARTS, VETERINARY, ANIMALS)
)
"""The patterns of the tables above. The number of the group that matched is that of the table's row."""

# PS3.6 section 6: the elements that are read, with the tags that messages quote.
TAGS = {
    "SOPClassUID": "0008,0016",
    "MediaStorageSOPClassUID": "0002,0002",
    "Modality": "0008,0060",
    "PresentationIntentType": "0008,0068",
    "BodyPartExamined": "0018,0015",
    "AnatomicRegionSequence": "0008,2218",
    "StudyDescription": "0008,1030",
    "SeriesDescription": "0008,103E",
    "ProtocolName": "0018,1030",
    "ViewPosition": "0018,5101",
    "ViewCodeSequence": "0054,0220",
    "PatientOrientation": "0020,0020",
    "FieldOfViewHorizontalFlip": "0018,7034",
    "FieldOfViewRotation": "0018,7032",
    "PatientAge": "0010,1010",
    "PatientSex": "0010,0040",
    "BurnedInAnnotation": "0028,0301",
    "QualityControlImage": "0028,0300",
    "InstitutionName": "0008,0080",
    "InstitutionalDepartmentName": "0008,1040",
    "StationName": "0008,1010",
    "Manufacturer": "0008,0070",
    "ManufacturerModelName": "0008,1090",
    "DetectorDescription": "0018,7006",
    "AcquisitionDeviceProcessingDescription": "0018,1400",
    "PerformedProcedureStepDescription": "0040,0254",
    "RequestedProcedureDescription": "0032,1060",
    "ProcedureCodeSequence": "0008,1032",
    "RequestedProcedureCodeSequence": "0032,1064",
    "PerformedProtocolCodeSequence": "0040,0260",
    "RequestAttributesSequence": "0040,0275",
    "PatientSpeciesDescription": "0010,2201",
    "PatientSpeciesCodeSequence": "0010,2202",
    "PatientSexNeutered": "0010,2203",
    "PatientBreedDescription": "0010,2292",
    "PatientBreedCodeSequence": "0010,2293",
    "BreedRegistrationSequence": "0010,2294",
    "ResponsiblePerson": "0010,2297",
    "ResponsiblePersonRole": "0010,2298",
    "ResponsibleOrganization": "0010,2299",
}
"""Keyword -> tag of each element that is read."""
