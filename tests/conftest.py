"""What all tests share: the module, a run as in Part I, and the program."""

import json
import random
import subprocess
import sys
import types
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
SCRIPT = TESTS.parent / 'microgpt.py'
sys.path.insert(0, str(SCRIPT.parent))
import microgpt  # noqa: E402

SMALL = TESTS / 'reference' / 'small.txt'
UNICODE = TESTS / 'reference' / 'unicode.txt'
SIZES = ['--n-embd', '4', '--n-head', '2', '--block-size', '6']
TINY = ['--data', str(SMALL), *SIZES, '--steps', '12']


def part_1():
    """The text of Part I: all before the cell that opens Part II."""
    text, _ = SCRIPT.read_text('utf-8').split('# %% [markdown]\n# # Part II', 1)
    return text


class Run:
    """A model in training as in Part I, with what a reference run has."""

    def __init__(self, name, config=None, docs=None):
        figures = TESTS / 'reference' / f'{name}.json'
        self.reference = json.loads(figures.read_text('utf-8'))
        self.settings = self.reference['config']
        sizes = [self.settings[field] for field in microgpt.Config._fields]
        self.config = config or microgpt.Config(*sizes)
        self.rng = random.Random(self.settings['seed'])
        self.docs = docs or microgpt.load_docs(figures.with_suffix('.txt'))
        self.rng.shuffle(self.docs)
        self.vocab = microgpt.vocabulary(self.docs)
        self.model = microgpt.new_model(self.config, len(self.vocab), self.rng)
        self.params = microgpt.parameters(self.model)
        self.adam = microgpt.Adam(self.params)
        self.options = types.SimpleNamespace(**self.config._asdict())

    def loss_at(self, step):
        doc = self.docs[step % len(self.docs)]
        return microgpt.document_loss(self.model, microgpt.encode(doc, self.vocab))

    def train(self, steps):
        """Train until so many steps are made; the losses."""
        rate, total = self.settings['learning_rate'], self.settings['num_steps']
        losses = []
        while self.adam.step < steps:
            loss = self.loss_at(self.adam.step)
            loss.backward()
            self.adam.update(rate * (1 - self.adam.step / total))
            microgpt.Value.tape.clear()
            losses.append(loss.data)
        return losses


def run(*args, **options):
    """The finished process of `python microgpt.py` with these arguments."""
    command = [sys.executable, str(SCRIPT), *map(str, args)]
    return subprocess.run(
        command, capture_output=True, encoding='utf-8', timeout=100, **options
    )


def start(*args, **options):
    """The started process of `python microgpt.py` with these arguments."""
    command = [sys.executable, str(SCRIPT), *map(str, args)]
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
    return subprocess.Popen(command, encoding='utf-8', **pipes, **options)


@pytest.fixture
def cli(capsys):
    """cli() with these arguments: status and output, as a process would have them."""

    def call(*args):
        capsys.readouterr()
        status = microgpt.cli(list(map(str, args)))
        out, err = capsys.readouterr()
        return types.SimpleNamespace(returncode=status, stdout=out, stderr=err)

    return call


def wait_for(process, text):
    """Read a process's stderr until a line has this text in it."""
    for line in process.stderr:
        if text in line:
            return
    raise AssertionError(f'the process has ended without {text!r}')


def refused(result, *words, status=2):
    """Assert that a run ended with one clear line, with these words in it."""
    assert result.returncode == status, result.stderr
    assert 'Traceback' not in result.stderr
    assert result.stdout == ''
    last = result.stderr.splitlines()[-1]
    assert last.startswith('microgpt: ')
    for word in words:
        assert word in last, last


@pytest.fixture
def checkpoint(tmp_path, cli):
    """The path of a checkpoint of a tiny trained model."""
    path = tmp_path / 'model.safetensors'
    assert cli(*TINY, '--save', path, '--samples', 0).returncode == 0
    return path
