"""Whatever ends a run: the model is saved, and the exit status says why.

By real signals to real processes; on Windows, which has no such signals, all
are skipped.
"""

import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest
from conftest import SCRIPT, SIZES, SMALL, TINY, paused, refused, run, start, wait_for

from microgpt import Signals, load_checkpoint

pytestmark = pytest.mark.skipif(os.name == 'nt', reason='sends POSIX signals')

LONG = ['--data', SMALL, *SIZES, '--steps', 100_000]
BATCH = [*LONG, '--batch-size', 5, '--workers', 2]


def end(process):
    """Wait for a process; its stdout and stderr."""
    stdout, stderr = process.communicate(timeout=30)
    assert 'Traceback' not in stderr, stderr
    return stdout, stderr


# ---- signals -----------------------------------------------------------------


@pytest.mark.parametrize(
    'number, status', [('SIGINT', 130), ('SIGTERM', 143), ('SIGHUP', 129)]
)
@pytest.mark.parametrize('arguments', [LONG, BATCH], ids=['one process', 'workers'])
def test_a_signal_stops_in_order_and_saves(arguments, number, status, tmp_path):
    path = tmp_path / 'model'
    process = start(*arguments, '--save', path)
    wait_for(process, 'step    100')
    process.send_signal(getattr(signal, number))
    stdout, stderr = end(process)
    assert process.returncode == status and stdout == ''
    assert 'Ctrl-C again: stopping at once' in stderr
    step = int(re.search(r'microgpt: stopped by .* after step (\d+)', stderr)[1])
    assert load_checkpoint(path).adam.step == step >= 100
    assert os.listdir(tmp_path) == ['model']


@pytest.mark.parametrize('arguments', [LONG, BATCH], ids=['one process', 'workers'])
def test_ctrl_c_at_any_moment_from_the_first_line_on_saves(arguments, tmp_path):
    rng = random.Random(3)
    for i in range(8):
        path = tmp_path / f'model {i}'
        process = start(*arguments, '--save', path, start_new_session=True)
        wait_for(process, 'num params')
        time.sleep(rng.uniform(0.005, 0.5))
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all, workers too
        _, stderr = end(process)
        assert process.returncode == 130, stderr
        assert load_checkpoint(path).adam.step >= 0


def test_ctrl_c_during_the_last_step_and_the_last_save_saves(tmp_path):
    settings = ['--data', SMALL, *SIZES, '--steps', 3, '--samples', 0, '--save']
    for i in range(6):
        path = tmp_path / f'model {i}'
        process = start(*settings, path)
        wait_for(process, 'step 1 / 3')
        time.sleep(0.002 * i)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        at_exit = -signal.SIGINT  # when Python itself was ending already
        assert process.returncode in (0, 130, at_exit)
        assert load_checkpoint(path).adam.step >= 1


def test_a_second_ctrl_c_stops_at_once_and_leaves_the_old_checkpoint(checkpoint):
    slow = ['--steps', 1000, '--batch-size', 100_000]
    process = start('--load', checkpoint, '--save', checkpoint, *slow, '--data', SMALL)
    before = checkpoint.read_bytes()
    wait_for(process, 'num params')
    time.sleep(0.3)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    end(process)
    assert process.returncode == 130 and time.monotonic() - began < 5
    assert (
        checkpoint.read_bytes() == before or load_checkpoint(checkpoint).adam.step == 12
    )


def test_only_ctrl_c_after_another_signal_interrupts_at_once():
    signals = Signals()
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGHUP):
        signals.note(number, None)
    assert signals.received == signal.SIGTERM
    with pytest.raises(KeyboardInterrupt):
        signals.note(signal.SIGINT, None)


def test_sigterm_that_comes_twice_as_from_timeout_stops_in_order(tmp_path):
    path = tmp_path / 'model'
    process = start(*LONG, '--save', path)
    wait_for(process, 'step    100')
    process.send_signal(signal.SIGTERM)
    time.sleep(0.0005)
    process.send_signal(signal.SIGTERM)
    end(process)
    assert process.returncode in (143, -signal.SIGTERM)  # the second may find it saved
    assert load_checkpoint(path).adam.step >= 99  # the line comes before the save


def test_ctrl_c_in_a_step_of_many_documents_does_not_wait_for_all_of_them(tmp_path):
    path = tmp_path / 'model'
    process = start(*LONG, '--batch-size', 1_000_000, '--save', path)
    wait_for(process, 'num params')
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, stderr = end(process)
    assert process.returncode == 130 and 'after step 0' in stderr
    assert load_checkpoint(path).adam.step == 0


def test_an_ignored_ctrl_c_stays_ignored(tmp_path):
    path = tmp_path / 'model'

    def ignore():
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    process = start(*LONG[:-1], 500, '--save', path, preexec_fn=ignore)
    wait_for(process, 'step ')
    with paused(process):
        process.send_signal(signal.SIGINT)
    end(process)
    assert process.returncode == 0 and load_checkpoint(path).adam.step == 500


def test_ctrl_c_while_sampling_ends_with_a_line():
    process = start(*TINY, '--samples', 10**6)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, stderr = end(process)
    assert process.returncode == 130
    assert stderr.splitlines()[-1] == 'microgpt: stopped by Ctrl-C'


def test_kill_9_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    path, rng = tmp_path / 'model', random.Random(1)
    step = 0
    for _ in range(12):
        model = ['--load', path] if path.exists() else LONG
        process = start(*model, '--save', path, '--save-every', 1)
        wait_for(process, 'step ')
        time.sleep(rng.uniform(0.005, 0.1))
        process.kill()
        process.communicate()
        if path.exists():
            new = load_checkpoint(path).adam.step
            assert new >= step
            step = new
    assert step > 0


# ---- memory ------------------------------------------------------------------


def test_memory_that_runs_out_in_training_does_not_lose_the_model(tmp_path):
    script, path = tmp_path / 'limited.py', tmp_path / 'model'
    script.write_text(
        'import sys; sys.path.insert(0, sys.argv.pop(1))\n'
        'import microgpt, resource\n'
        'def note(self, step, loss, lesson):\n'
        '    if step == 3: microgpt.finite_loss = greedy\n'
        'def greedy(*_):\n'
        '    resource.setrlimit(resource.RLIMIT_AS, (2 ** 29, 2 ** 29))\n'
        '    return [[0] * 10 ** 6 for _ in range(10 ** 6)]\n'
        'microgpt.Progress.note = note\n'
        'sys.exit(microgpt.cli())\n'
    )
    command = [sys.executable, script, SCRIPT.parent, *TINY, '--save', path]
    result = subprocess.run(
        list(map(str, command)), capture_output=True, encoding='utf-8'
    )
    refused(result, 'out of memory', status=1)
    assert load_checkpoint(path).adam.step == 3


# ---- workers -----------------------------------------------------------------


def stat(pid):
    """The fields of /proc/PID/stat from the state on; a zombie's if it has ended."""
    try:
        with open(f'/proc/{pid}/stat') as file:
            return file.read().rsplit(')', 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return ['Z', '0']


def workers_of(process):
    """The process ids of the workers of a running program."""
    found = []
    for pid in filter(str.isdigit, os.listdir('/proc')):
        if stat(pid)[1] == str(process.pid):
            with open(f'/proc/{pid}/cmdline') as file:
                found += [int(pid)] if 'spawn_main' in file.read() else []
    return found


def assert_gone(pids):
    """Assert that none of these processes runs, after waiting for it a little."""
    for _ in range(500):
        if all(stat(pid)[0] == 'Z' for pid in pids):
            return
        time.sleep(0.01)
    raise AssertionError('workers live on')


@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='finds processes by /proc')
@pytest.mark.parametrize('victim', ['worker', 'parent'])
def test_a_killed_process_ends_all_and_the_model_is_saved(victim, tmp_path):
    path = tmp_path / 'model'
    saving = (
        ['--save', path] if victim == 'worker' else ['--save', path, '--save-every', 1]
    )
    process = start(*BATCH, *saving)
    wait_for(process, 'step    100')
    pids = workers_of(process)
    assert len(pids) == 2
    os.kill(pids[1] if victim == 'worker' else process.pid, signal.SIGKILL)
    _, stderr = end(process)
    assert_gone(pids)
    if victim == 'worker':
        assert process.returncode == 1
        assert stderr.splitlines()[-1] == 'microgpt: a worker process has died'
    assert load_checkpoint(path).adam.step >= 99  # the line comes before the save


# ---- output ------------------------------------------------------------------


def test_training_goes_on_when_nobody_reads_stderr(tmp_path):
    process = start(*TINY, '--save', tmp_path / 'model', '--samples', 3)
    process.stderr.close()
    assert process.stdout.read().count('\n') == 3 and process.wait() == 0
    assert (tmp_path / 'model').exists()


def test_a_pipe_that_is_closed_early_is_no_error():
    process = start(*TINY, '--samples', 10**6)
    process.stdout.readline()
    process.stdout.close()
    stderr = process.stderr.read()
    assert process.wait(timeout=20) == 0
    assert not re.search('Error|Exception|microgpt:', stderr)


def test_a_closed_stdout_is_told():
    refused(run(*TINY, preexec_fn=lambda: os.close(1)), 'standard output is closed')


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs /dev/full')
def test_a_full_stdout_is_told(tmp_path):
    command = [sys.executable, str(SCRIPT), *TINY, '--save', str(tmp_path / 'model')]
    with open('/dev/full', 'w') as full:
        result = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, encoding='utf-8'
        )
    assert result.returncode == 2 and result.stderr.endswith(
        'No space left on device\n'
    )
    assert (tmp_path / 'model').exists()
