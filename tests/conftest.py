"""What all tests share: the module, its path, and a way to run it as a user does."""
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
SCRIPT = TESTS.parent / 'microgpt.py'
sys.path.insert(0, str(SCRIPT.parent))
import microgpt  # noqa: E402

SMALL, UNICODE = (TESTS / 'reference' / f'{name}.txt' for name in ('small', 'unicode'))
TINY = ['--data', str(SMALL), '--n-embd', '4', '--n-head', '2', '--block-size', '6', '--steps', '12']


class Run:
    """A model in training as Part I makes it, from a data set and the configuration beside it."""

    def __init__(self, name=None, docs=None, config=None, seed=42):
        if name:
            self.reference = json.loads((TESTS / 'reference' / f'{name}.json').read_text('utf-8'))
            settings = self.reference['config']
            docs = microgpt.load_docs(TESTS / 'reference' / f'{name}.txt')
            config = microgpt.Config(*(settings[field] for field in microgpt.Config._fields))
            seed = settings['seed']
        self.rng = random.Random(seed)
        self.docs, self.config = list(docs), config
        self.rng.shuffle(self.docs)
        self.chars = microgpt.alphabet(self.docs)
        shapes = microgpt.shapes(config, len(self.chars) + 1)
        self.model = microgpt.new_model(shapes, lambda: self.rng.gauss(0, 0.08))
        self.params = microgpt.parameters(self.model)

    def tokens(self, step):
        return microgpt.encode(self.docs[step % len(self.docs)], self.chars)

    def gradients_at(self, step):
        return microgpt.document_gradients(self.model, self.config, self.tokens(step))


def run(*args, **options):
    """The finished process of `python microgpt.py` with these arguments."""
    command = [sys.executable, str(SCRIPT), *map(str, args)]
    return subprocess.run(command, capture_output=True, encoding='utf-8', timeout=100, **options)


def start(*args, **options):
    """The started process of `python microgpt.py` with these arguments."""
    command = [sys.executable, str(SCRIPT), *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            encoding='utf-8', **options)


def refused(result, *words, status=2):
    """Asserts that a process ended with one clear line on stderr, these words in it, and nothing else."""
    assert result.returncode == status, result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith('microgpt: ') and 'Traceback' not in result.stderr
    assert result.stdout == ''
    for word in words:
        assert word in last


@pytest.fixture
def checkpoint(tmp_path):
    """The path of a checkpoint of a tiny trained model."""
    path = tmp_path / 'model.safetensors'
    assert run(*TINY, '--save', path, '--samples', 0).returncode == 0
    return path
