"""The demo's tokenizer: its pieces are kept, whatever the wordings become."""

from hashlib import sha256

from scripts.demo import tokenizer
from scripts.demo.tasks import edit_tasks
from scripts.demo.wordings import recaption

BUILT = "68b261d2cfa56a86894a7c997f1e26bb91204dd7d0b202f68a9132b536c47431"
"""The SHA-256 of the file that the trained weights are tied to."""


def test_the_trained_weights_pieces(tmp_path):
    tokenizer.build().save(str(tmp_path / "tokenizer.json"), pretty=False)
    assert sha256((tmp_path / "tokenizer.json").read_bytes()).hexdigest() == BUILT


def test_it_says_what_it_reads_in_few_pieces():
    built = tokenizer.build()
    for task in edit_tasks(pairs=False):
        for text in (recaption(task, "en"), recaption(task, "zh")):
            ids = built.encode(text, add_special_tokens=False).ids
            assert built.decode(ids) == text
            assert len(ids) < 20
