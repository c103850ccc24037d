"""Values that options should not have: for each kind of option, what is tried and what has to be refused."""

import random

# Kind of option to (value, must it be refused); None where either is right.
Value = tuple[str, bool | None]
ODD_WORDS = ["[/b]", "🦆", "[bold]x[/bold]", "a b", "-", "é" * 300, "{", "%s %d", "\\", "'", "\udcff"]
NOT_A_NUMBER: list[Value] = [
    ("", True), ("abc", True), ("nan", True), ("[1, 2]", True), ("{}", True), ("{a: 1}", True), ("[/b]", True),
    ("1e400", True), ("-1", True), ("-3", True), ("--", True), ("0x10", None), ("null", None),
]  # fmt: skip
COUNT: list[Value] = [*NOT_A_NUMBER, ("1.5", True), ("0", True), ("99999999999999999999999", None), ("true", None)]
NOT_A_PATH: list[Value] = [
    ("", True), (" ", True), ("nowhere", True), ("nowhere/deep/er", True), ("/dev/null", True), ("notes.txt", True),
    ("notes", True), ("runs/word", True), ("runs/pretrian/encoder", True), ("[a, b]", True), ("x" * 300, True),
    ("[/b]", True), ("~/nowhere", True), ("café/ü", True), ("dangling", True), ("fifo", True), ("{}", True),
    ("null", True), ("\udcff", True), ("images/train/cat/0.png", True), ("results/a/accuracy.md", True),
    ("https://example.invalid/x", True), ("/root/../nowhere", True), ("-", True),
]  # fmt: skip
SHARE: list[Value] = [
    ("", True), ("abc", True), ("nan", True), ("-0.1", True), ("1.5", True), ("inf", True), ("[]", True),
    ("null", None), ("1", None), ("0", None),
]  # fmt: skip
RATE: list[Value] = [
    ("", True), ("abc", True), ("nan", True), ("-1", True), ("-1e-3", True), ("[1]", True), ("{}", True), ("inf", None),
    ("0", None), ("1e-30", None), ("1e30", None), ("null", None), ("[/b]", True),
]  # fmt: skip
VALUES: dict[str, list[Value]] = {
    "count": COUNT,
    "counts": [value for value in COUNT if value[0] != "[1, 2]"],  # one, or a list
    "codes": [*COUNT, ("1", True)],
    "count_or_zero": [value for value in COUNT if value[0] != "0"],
    "count_or_null": [value for value in COUNT if value[0] != "0"] + [("0", None)],
    "data_size": [*COUNT[:-2], ("1", None)],
    "batch_size": [*COUNT, ("1", None), ("1000", None)],
    "repeats": [value for value in COUNT if value[0] != "99999999999999999999999"],  # they would be done
    "workers": [value for value in COUNT if value[0] not in ("0", "99999999999999999999999", "true")],
    "steps": [("", True), ("abc", True), ("nan", True), ("-2", True), ("1.5", True), ("[]", True), ("0", None)],
    "integer": [("", True), ("abc", True), ("nan", True), ("[1]", True), ("1.5", True), ("-1", None)],
    "share": SHARE,
    "rate": RATE,
    "margin": [*[value for value in RATE if value[1]], ("0", True), ("0.015", True), ("1e30", True), ("0.02", None)],
    "overlap": [value for value in RATE if value[0] != "0"] + [("0", None), ("1000", True)],
    "bits": [
        ("", True), ("w9a9", True), ("w0a0", True), ("w1a8", True), ("w8", None), ("int8", None), ("W8A8", None),
        ("[/b]", True), ("{}", True), ("w-4a4", True), ("ｗ８ａ８", True), ("w8a8w8a8", True), ("8", None),
        ("nan", True),
        ("w٨a٨", True), ("w4a4", None), ("fp", None), ("random", None), ("null", None),
    ],
    "bits_list": [
        ("[]", None), ("[w9a9]", True), ("['']", True), ("[null]", True), ("[[w8a8]]", True), ("w8a8", None),
        ("", True),
        ("[w8a8, w8a8]", None), ("{}", True), ("[1]", True), ("'[/b]'", True), ("[w8a8, nonsense]", True),
        ("[w3a3]", None), ("null", None), ("[", True),
    ],
    "bool": [("maybe", True), ("", True), ("2", True), ("nan", True), ("[true]", True), ("{}", True), ("yes", None)],
    "resume": [("maybe", True), ("", True), ("2", True)],
    "choice": [(word, True) for word in ODD_WORDS] + [("", True), ("1", True), ("[]", True), ("{}", True)],
    "accelerator": [("gpu", True), ("cuda", True), ("tpuu", True), ("", True), ("[/b]", True), ("nan", True)],
    "devices": [("0", True), ("abc", True), ("[]", True), ("nan", True), ("{}", True), ("-2", True), ("1.5", True)],
    "time": [("banana", True), ("00:00", True), ("{}", None), ("nan", True), ("-1", True), ("[1]", True)],
    "class": [(word, True) for word in ODD_WORDS]
    + [("Subset", True), ("SpokenWord", True), ("AudioFolder", None), ("FashionMNIST", None), ("", True),
       ("os.path", True),
       ("torch.nn.Linear", True), ("{class_path: Nothing}", True), ("null", None), ("nowhere.yaml", True)],
    "languages": [("[]", True), ("[xx]", True), ("en-us", None), ("[null]", True), ("", True), ("{}", True),
                  ("[1]", True)],
    "pattern": [("[", True), ("(", True), ("*", True), ("$^", None), (".*", None), ("", None), ("{}", None)],
    "labels": [("[", True), ("nowhere.csv", True), ("transcripts.tsv", True), ("(?P<a>x)", True), ("notes.csv", True),
               ("(?P<a>.)?", None), ("(?P<class>[a-z]+)/", None), ("", None), ("null", None)],
    "task": [("nothing", True), ("", True), ("[/b]", True), ("[a, b]", True), ("[]", True), ("{}", True),
             ("nan", True), ("\udcff", True)],
    "tasks": [("[nothing]", True), ("['']", True), ("[[]]", True), ("{}", True), ("[1]", True),
              ("[speaker, nothing]", True)],
    "parts": [("[nothing]", True), ("['']", True), ("{}", True), ("nothing", True), ("[[]]", True)],
    "mapping": [("[]", True), ("abc", True), ("{a: 1}", True), ("{a: nowhere}", True), ("{'': ''}", True),
                ("[a: b", True),
                ("{'[/b]': nowhere}", True), ("1", True)],
    "lengths": [("[0]", True), ("[-1]", True), ("[nan]", True), ("[inf]", True), ("[]", None), ("[a]", True),
                ("{}", True), ("", True), ("[1e-9]", True), ("[null]", True)],
    "threads": [("[-1]", True), ("[a]", True), ("[]", None), ("[1.5]", True), ("[100000000000000000000]", None),
                ("{}", True), ("[null]", True)],
    "port": [("99999", True), ("-1", True), ("abc", True), ("", True), ("nan", True), ("1.5", True), ("[1]", True)],
    "text": [(word, None) for word in ODD_WORDS] + [("", None), ("null", None), ("a\nb", None), ("| x |", None)],
    "input_file": [*NOT_A_PATH, ("audio", True), ("models/speech", True), ("talk.wav", True)],
    "input_folder": [*NOT_A_PATH, ("talk.wav", True), ("report.html", True), ("results/latency.png", True)],
    "input_files": [(f"[{path}]", True) for path, _ in NOT_A_PATH if not path.startswith(("[", "{", "-"))]
    + [("[]", True), ("{}", True), ("nowhere", True), ("[results/latency.json]", True), ("[[a]]", True)],
    "artifact": [*NOT_A_PATH, ("talk.wav", True), ("files", True), ("files/encoder-int4.onnx.bak", True),
                 ("runs/pretrain", True), ("models", True), ("nobody/nothing", True), ("results", True)],
    "output": [("", None), ("/proc/nowhere/new", True), ("notes.txt/new", True), ("x" * 300, True), ("dangling", None),
               ("/dev/null", True), ("{}", None), ("\udcff", None), ("[/b]", None), ("out/" + "deep/" * 40, None)],
}  # fmt: skip
# Values of a kind that one command's option takes: the encoder of `features` may be a file, `export` needs no tables,
# and `bench` adds .json to the name of its output: root may write /dev/null.json.
RIGHT_ELSEWHERE = {
    ("features", "encoder", "files/encoder-int4.onnx"), ("export", "accuracy", "null"),
    ("bench", "output", "/dev/null"),
}  # fmt: skip


def wrong_value(kind: str, random: random.Random) -> Value:
    """A value that options of a kind should not have, and whether it must be refused."""
    return random.choice(VALUES[kind])


def near(name: str, random: random.Random) -> str:
    """A name as it is mistyped."""
    place = random.randrange(len(name))
    slips = [
        name[:place] + name[place + 1 :],
        name[:place] + "x" + name[place:],
        name + "s",
        name.replace("_", "-") + "-",
    ]
    return random.choice([slip for slip in slips if slip and slip != name])
