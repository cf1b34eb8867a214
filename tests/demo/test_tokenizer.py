"""The demo's tokenizer: its pieces are kept, whatever the wordings become."""

from hunyuan import demo
from scripts.demo import tokenizer
from scripts.demo.tasks import edit_tasks
from scripts.demo.wordings import recaption


def test_it_is_the_trained_weights_one(tmp_path):
    tokenizer.build().save(str(tmp_path / "tokenizer.json"), pretty=False)
    assert (tmp_path / "tokenizer.json").read_bytes() == (demo.FOLDER / "tokenizer.json").read_bytes()


def test_it_says_what_it_reads_in_few_pieces():
    built = tokenizer.build()
    for task in edit_tasks(pairs=False):
        for text in (recaption(task, "en"), recaption(task, "zh")):
            ids = built.encode(text, add_special_tokens=False).ids
            assert built.decode(ids) == text
            assert len(ids) < 20
