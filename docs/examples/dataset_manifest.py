"""Write a manifest of the frontal films of children in a public data set, from its CSV file.

python dataset_manifest.py nih Data_Entry_2017_v2020.csv > nih.csv
"""

import csv
import gzip
import sys


def nih(row):
    return f"images/{row['Image Index']}", int(row["Patient Age"]), row["Patient Gender"], row["View Position"]


def padchest(row):
    years = int(row["StudyDate_DICOM"][:4]) - int(float(row["PatientBirth"]))
    return f"{row['ImageDir']}/{row['ImageID']}", years, row["PatientSex_DICOM"], row["Projection"]


def mimic(row):  # adults only; their age and sex are in MIMIC-IV
    folder = f"files/p{row['subject_id'][:2]}/p{row['subject_id']}/s{row['study_id']}"
    return f"{folder}/{row['dicom_id']}.jpg", 0, "", row["ViewPosition"]


read_row = {"nih": nih, "padchest": padchest, "mimic": mimic}[sys.argv[1]]
manifest = csv.writer(sys.stdout)
manifest.writerow(["path", "age", "sex", "assume_chest"])
with (gzip.open if sys.argv[2].endswith(".gz") else open)(sys.argv[2], "rt", newline="") as file:
    for row in csv.DictReader(file):
        try:
            path, years, sex, view = read_row(row)
        except ValueError:  # an age that is no number
            continue
        if years < 18 and view in ("PA", "AP", "AP_horizontal"):
            # Whole years do not tell the age of an infant.
            manifest.writerow([path, f"{years}y" if years else "", sex if sex in ("M", "F") else "", "yes"])
