"""Whatever ends a run: the model is saved, and the exit status says why.

On Windows, which has no such signals and no such shell, all is skipped.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest
from conftest import SCRIPT, TINY, refused, start, wait_for

import microgpt
from microgpt import load_checkpoint

pytestmark = pytest.mark.skipif(os.name == 'nt', reason='needs signals and a shell')


@pytest.fixture(autouse=True)
def heeded():
    """However pytest was started, no signal is ignored."""
    numbers = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    old = [signal.signal(number, signal.default_int_handler) for number in numbers]
    yield
    for number, handler in zip(numbers, old):
        signal.signal(number, handler)


def send(name):
    """Do what the process does when a signal of this name comes."""
    number = getattr(signal, name)
    signal.getsignal(number)(number, None)


def before(monkeypatch, owner, name, action):
    """Let something happen at the beginning of every call of a function."""
    original = getattr(owner, name)

    def function(*args):
        action()
        return original(*args)

    monkeypatch.setattr(owner, name, function)


SIGNALS = {  # signal, documents a step, what is at work then: who stops it, step saved
    'Ctrl-C before training': ('SIGINT', 1, 'rehearse', 'Ctrl-C', 0),
    'Ctrl-C in a step': ('SIGINT', 1, 'finite_loss', 'Ctrl-C after step 1', 1),
    'SIGTERM in a step': ('SIGTERM', 1, 'finite_loss', 'a signal after step 1', 1),
    'a closed terminal': ('SIGHUP', 1, 'finite_loss', 'a signal after step 1', 1),
    'a large step': ('SIGINT', 99, 'document_gradients', 'Ctrl-C after step 0', 0),
    'saving': ('SIGINT', 1, 'save_anyhow', 'Ctrl-C after step 12', 12),
    'sampling': ('SIGINT', 1, 'new_name', 'Ctrl-C', 12),
}


@pytest.mark.parametrize('name', SIGNALS)
def test_a_signal_stops_in_order_and_saves(name, tmp_path, monkeypatch, cli):
    signal_name, size, place, stopped_by, step = SIGNALS[name]
    path, number, calls = tmp_path / 'model', getattr(signal, signal_name), []
    before(monkeypatch, microgpt, place, lambda: (calls.append(1), send(signal_name)))
    result = cli(*TINY, '--batch-size', size, '--save', path)
    refused(result, f'stopped by {stopped_by}', status=128 + number)
    assert result.stderr.endswith(f' {stopped_by}\n') and len(calls) == 1
    go_on = f'\nsaved as {path}; go on: --load {path} --save {path}\n'
    assert (go_on in result.stderr) == (step == 1)
    assert (load_checkpoint(path).step if path.exists() else 0) == step
    assert signal.getsignal(number) == signal.default_int_handler  # as it was


def test_ctrl_c_stops_at_once_only_a_second_after_the_first_signal(monkeypatch, capsys):
    times = [10.0, 10.5, 11.0, 11.01]
    clock = types.SimpleNamespace(monotonic=lambda: times.pop(0))
    monkeypatch.setattr(microgpt, 'time', clock)
    with pytest.raises(KeyboardInterrupt), microgpt.noted_signals() as received:
        for name in ('SIGTERM', 'SIGINT', 'SIGINT', 'SIGINT'):
            send(name)
    assert received == [signal.SIGTERM, signal.SIGINT, signal.SIGINT]
    assert capsys.readouterr().err.count('Ctrl-C again to stop now') == 1


def test_an_ignored_ctrl_c_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with microgpt.noted_signals():
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def workers_of(process):
    """The process ids of the workers of a running program."""
    children = Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text()
    file = '/proc/{}/cmdline'
    pids = map(int, children.split())
    return [pid for pid in pids if 'spawn_main' in Path(file.format(pid)).read_text()]


KILLED = {  # what is sent to whom: the exit status, and what is said at last
    'a worker': (signal.SIGKILL, 1, 'a worker process has died'),
    'the parent': (signal.SIGKILL, -9, ''),
    'all, by a terminal': (signal.SIGINT, 130, 'stopped by Ctrl-C after step'),
}


@pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='needs Linux')
@pytest.mark.parametrize('moment', ['num params', 'step     1'])
@pytest.mark.parametrize('victim', KILLED)
def test_a_killed_process_ends_all_and_the_model_is_saved(victim, moment, tmp_path):
    number, status, words = KILLED[victim]
    path, batch = tmp_path / 'model', ['--batch-size', 5, '--workers', 2]
    settings = [*TINY, '--steps', 20_000, *batch, '--save', path, '--save-every', 1]
    process = start(*settings, start_new_session=True)
    wait_for(process, moment)
    while not (pids := workers_of(process)):
        assert process.poll() is None
    state = Path(f'/proc/{pids[0]}/status').read_text()
    blocked = int(re.search(r'SigBlk:\s*(\w+)', state)[1], 16)
    assert blocked & 0x4003 == 0x4003  # the signals 1, 2 and 15
    targets = {'a worker': pids[0], 'the parent': process.pid}
    os.kill(targets.get(victim, -process.pid), number)
    stdout, stderr = process.communicate(timeout=60)  # workers, too, hold these open
    assert (process.returncode, stdout) == (status, '')
    step = load_checkpoint(path).step if path.exists() else 0
    if victim != 'the parent':
        assert words in stderr.splitlines()[-1] and 'Traceback' not in stderr
        assert ('saved as' in stderr) == (step > 0)
        assert step > 0 or moment == 'num params'


def test_workers_are_left_out_where_they_cannot_be_started():
    options = map(str, [*TINY, '--batch-size', 2, '--workers', 2])
    command = [sys.executable, '-', *options]
    result = subprocess.run(command, input=SCRIPT.read_bytes(), capture_output=True)
    assert result.stderr.count(b'without workers') == 1
    assert result.returncode == 0 and result.stdout.count(b'\n') == 20


def test_a_thread_can_train_and_a_second_run_at_once_is_refused(cli, monkeypatch):
    results = []
    before(monkeypatch, microgpt, 'judge', lambda: results.append(microgpt.cli([])))
    thread = threading.Thread(target=lambda: results.append(cli(*TINY)))
    thread.start()
    thread.join()
    assert results[0] == 2 and results[1].returncode == 0
    assert 'another run is under way in this process' in results[1].stderr


SCRIPTS = {  # exit status, names printed, number and words of complaints, step saved
    'run --save model 2>&-': (0, 20, 0, '', 40),
    'run --save model 2>/dev/full': (0, 20, 0, '', 40),
    'run --save model >&-': (2, 0, 1, 'standard output is closed', 12),
    'run --save model >/dev/full': (1, 0, 1, 'output: No space left on device', 40),
    'run --samples 1000000 | head -n 1': (0, 1, 0, '', 12),
    'ulimit -f 1; run --log log': (1, 20, 1, 'log: File too large: no more rows', 12),
    'ulimit -f 1; run --save model --save-every 9': (1, 20, 6, 'File too large', 12),
}


@pytest.mark.parametrize('script', SCRIPTS)
def test_output_that_cannot_be_written_costs_nothing_else(script, checkpoint):
    status, names, complaints, words, step = SCRIPTS[script]
    model = checkpoint.rename(checkpoint.with_name('model'))
    options = ['--load', 'model', '--steps', 40, '--samples', 20]
    command = shlex.join(map(str, [sys.executable, SCRIPT, *options]))
    function = f'run() {{ {command} "$@"; echo $? >status; }}\n'
    pipes = {'capture_output': True, 'encoding': 'utf-8', 'cwd': model.parent}
    result = subprocess.run(function + script, shell=True, **pipes)
    assert model.with_name('status').read_text() == f'{status}\n'
    assert result.stdout.count('\n') == names and words in result.stderr
    assert len(re.findall('microgpt: |Error', result.stderr)) == complaints
    assert load_checkpoint(model).step == step
    assert set(os.listdir(model.parent)) <= {'model', 'log', 'status'}


RESCUES = {  # before a call of what, what happens to the file, and what is said
    'is taken': ('Progress.note', lambda path: path.write_text('a'), 'another program'),
    'is taken meanwhile': ('os.fsync', lambda path: path.write_text('a'), 'another'),
    'claimed': ('os.fsync', lambda p: p.with_name('.gpt-model.bin').touch(), 'File'),
    'is gone': ('Progress.note', lambda path: shutil.rmtree(path.parent, 1), 'No such'),
}


@pytest.mark.parametrize('name', RESCUES)
def test_a_model_without_a_place_is_saved_elsewhere(name, tmp_path, monkeypatch, cli):
    call, action, words = RESCUES[name]
    owner, function = call.split('.')
    path = tmp_path / 'folder' / 'model.bin'
    path.parent.mkdir()
    monkeypatch.setenv('HOME', str(tmp_path))
    before(monkeypatch, getattr(microgpt, owner), function, lambda: action(path))
    result = cli(*TINY, '--save', path)
    saved = re.search('saved as (.*?);', result.stderr)[1]
    assert result.returncode == 1 and f'{path}: not saved: {words}' in result.stderr
    assert load_checkpoint(saved).step == 12 and saved != str(path)
    assert not path.exists() or path.read_text() == 'a'
