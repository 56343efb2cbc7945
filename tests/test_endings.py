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
import threading
import time

import pytest
from conftest import SCRIPT, SIZES, SMALL, TINY, env, paused, refused, run, start
from conftest import wait_for

import microgpt
from microgpt import load_checkpoint

pytestmark = pytest.mark.skipif(os.name == 'nt', reason='sends POSIX signals')

LONG = ['--data', SMALL, *SIZES, '--steps', 100_000]
BATCH = [*LONG, '--batch-size', 5, '--workers', 2]
ENDLESS_STEP = [*LONG, '--batch-size', 1_000_000]


def end(process):
    """Wait for a process; its stdout and stderr."""
    stdout, stderr = process.communicate(timeout=30)
    assert 'Traceback' not in stderr, stderr
    return stdout, stderr


# ---- signals -----------------------------------------------------------------


SIGNALS = {'SIGINT': 130, 'SIGTERM': 143, 'SIGHUP': 129}


@pytest.mark.parametrize('name', SIGNALS)
def test_a_signal_stops_in_order_saves_and_says_how_to_go_on(name, tmp_path):
    path = tmp_path / 'model'
    process = start(*(BATCH if name == 'SIGHUP' else LONG), '--save', path)
    wait_for(process, 'step    100')
    process.send_signal(getattr(signal, name))
    if name == 'SIGTERM':
        process.send_signal(signal.SIGTERM)  # it often comes twice
    stdout, stderr = end(process)
    assert process.returncode in (SIGNALS[name], -signal.SIGTERM) and stdout == ''
    assert f'saved as {path}; go on: --load {path} --save {path}' in stderr
    step = load_checkpoint(path).step
    assert step >= 100 and os.listdir(tmp_path) == ['model']
    if process.returncode > 0:
        assert re.search(f'microgpt: stopped by .* after step {step}$', stderr.strip())


@pytest.mark.parametrize('arguments', [LONG, BATCH], ids=['one process', 'workers'])
def test_ctrl_c_at_any_moment_saves_what_was_learnt(arguments, tmp_path):
    rng = random.Random(3)
    for i in range(3):
        path = tmp_path / f'model {i}'
        process = start(*arguments, '--save', path, start_new_session=True)
        wait_for(process, 'num params')
        time.sleep(rng.uniform(0.005, 0.5))
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all, workers too
        _, stderr = end(process)
        assert process.returncode == 130, stderr
        steps = re.search(r'after step (\d+)', stderr)
        assert path.exists() == bool(steps and int(steps[1]))  # none was made: no file
        assert not path.exists() or load_checkpoint(path).step == int(steps[1])


def test_a_second_ctrl_c_stops_at_once_and_leaves_the_old_checkpoint(checkpoint):
    before = checkpoint.read_bytes()
    process = start('--load', checkpoint, '--save', checkpoint, '--steps', 1000)
    wait_for(process, 'going on from step 12')
    with paused(process):
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
    end(process)
    assert process.returncode in (130, 143)
    assert checkpoint.read_bytes() == before or load_checkpoint(checkpoint).step > 12
    noted = []
    with microgpt.noted_signals() as received:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
        noted += received
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert noted == [signal.SIGTERM, signal.SIGTERM, signal.SIGHUP]


def test_ctrl_c_in_a_step_of_many_documents_does_not_wait_for_all_of_them(tmp_path):
    path = tmp_path / 'model'
    process = start(*ENDLESS_STEP, '--save', path)
    wait_for(process, 'num params')
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, stderr = end(process)
    assert process.returncode == 130 and 'after step 0' in stderr
    assert not path.exists()  # nothing was learnt, so nothing is saved


def test_an_ignored_ctrl_c_stays_ignored(tmp_path):
    path = tmp_path / 'model'

    def ignore():
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    process = start(*LONG[:-1], 300, '--save', path, preexec_fn=ignore)
    wait_for(process, 'step ')
    process.send_signal(signal.SIGINT)
    end(process)
    assert process.returncode == 0 and load_checkpoint(path).step == 300


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
    for _ in range(6):
        model = ['--load', path] if path.exists() else LONG
        process = start(*model, '--save', path, '--save-every', 1)
        wait_for(process, 'step ')
        time.sleep(rng.uniform(0.005, 0.1))
        process.kill()
        process.communicate()
        if path.exists():
            new = load_checkpoint(path).step
            assert new >= step
            step = new
    assert step > 0


# ---- memory, workers, threads ------------------------------------------------


def test_memory_that_runs_out_in_training_does_not_lose_the_model(tmp_path):
    script, path = tmp_path / 'limited.py', tmp_path / 'model'
    script.write_text(
        'import sys; sys.path.insert(0, sys.argv.pop(1))\n'
        'import microgpt, resource\n'
        'def note(self, *_):\n'
        '    if self.run.step == 3: microgpt.finite_loss = greedy\n'
        'def greedy(*_):\n'
        '    resource.setrlimit(resource.RLIMIT_AS, (2 ** 29, 2 ** 29))\n'
        '    return [[0] * 10 ** 6 for _ in range(10 ** 6)]\n'
        'microgpt.Progress.note = note\n'
        'sys.exit(microgpt.cli())\n'
    )
    command = [sys.executable, script, SCRIPT.parent, *TINY, '--save', path]
    pipes = {'capture_output': True, 'encoding': 'utf-8'}
    result = subprocess.run(list(map(str, command)), **pipes)
    refused(result, 'out of memory', status=1)
    assert load_checkpoint(path).step == 3


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
@pytest.mark.parametrize('moment', ['num params', 'step      1'])
@pytest.mark.parametrize('victim', ['worker', 'parent'])
def test_a_killed_process_ends_all_and_the_model_is_saved(victim, moment, tmp_path):
    path = tmp_path / 'model'
    process = start(*BATCH, '--save', path, '--save-every', 1)
    wait_for(process, moment)
    pids = []
    while len(pids) < 2 and process.poll() is None:
        pids = workers_of(process)
    os.kill(pids[1] if victim == 'worker' else process.pid, signal.SIGKILL)
    _, stderr = end(process)
    assert_gone(pids)
    if victim == 'worker':
        assert process.returncode == 1
        assert stderr.splitlines()[-1] == 'microgpt: a worker process has died'
    if path.exists():
        assert load_checkpoint(path).step >= 1


def test_workers_are_left_out_where_they_cannot_be_started(tmp_path):
    script = tmp_path / 'script.py'  # without a main guard
    call = f"microgpt.cli({[*map(str, TINY), '--batch-size', '2', '--workers', '2']})"
    script.write_text(f'import sys; sys.path.insert(0, {str(SCRIPT.parent)!r})\n')
    script.write_text(f'{script.read_text()}import microgpt; {call}\n')
    command = [sys.executable, str(script)]
    result = subprocess.run(command, capture_output=True, encoding='utf-8')
    assert result.returncode == 0 and result.stderr.count('without workers') == 1
    piped = [sys.executable, '-', *map(str, TINY), '--batch-size', '2', '--workers', '2']
    with open(SCRIPT, encoding='utf-8') as program:
        from_stdin = subprocess.run(
            piped, stdin=program, capture_output=True, encoding='utf-8'
        )
    assert from_stdin.stdout == result.stdout and 'without workers' in from_stdin.stderr


def test_two_runs_in_one_process_at_once_are_refused(cli):
    second = []

    def note(progress, *_):
        if not second:
            thread = threading.Thread(target=lambda: second.append(microgpt.cli(tiny)))
            thread.start()
            thread.join()

    tiny = list(map(str, TINY))
    original, microgpt.Progress.note = microgpt.Progress.note, note
    try:
        result = cli(*TINY)
    finally:
        microgpt.Progress.note = original
    assert second == [2] and result.returncode == 0
    assert 'another run is under way in this process' in result.stderr


def test_off_the_main_thread_it_trains_without_signal_handlers(tmp_path):
    statuses = []
    args = [*map(str, TINY), '--save', str(tmp_path / 'model'), '--samples', '0']
    thread = threading.Thread(target=lambda: statuses.append(microgpt.cli(args)))
    thread.start()
    thread.join()
    assert statuses == [0] and (tmp_path / 'model').exists()


# ---- output ------------------------------------------------------------------


def test_training_goes_on_when_nobody_reads_stderr(tmp_path):
    process = start(*TINY, '--save', tmp_path / 'model', '--samples', 3)
    process.stderr.close()
    assert process.stdout.read().count('\n') == 3 and process.wait() == 0
    assert (tmp_path / 'model').exists()
    log = tmp_path / 'log'
    result = run(*TINY, '--log', log, preexec_fn=lambda: os.close(2))
    assert result.returncode == 0 and result.stdout.count('\n') == 20
    assert log.read_text().count('\n') == 13  # nothing else got into it


def test_a_pipe_that_is_closed_early_is_no_error():
    process = start(*TINY, '--samples', 10**6)
    process.stdout.readline()
    process.stdout.close()
    stderr = process.stderr.read()
    assert process.wait(timeout=20) == 0
    assert not re.search('Error|Exception|microgpt:', stderr)


def test_names_that_cannot_be_printed_are_told(tmp_path):
    refused(run(*TINY, preexec_fn=lambda: os.close(1)), 'standard output is closed')
    if os.path.exists('/dev/full'):
        command = [sys.executable, str(SCRIPT), *TINY, '--save', str(tmp_path / 'm')]
        with open('/dev/full', 'w') as full:
            pipes = {'stdout': full, 'stderr': subprocess.PIPE, 'encoding': 'utf-8'}
            result = subprocess.run(command, **pipes)
        assert result.returncode == 2 and (tmp_path / 'm').exists()
        assert result.stderr.endswith('No space left on device\n')


# ---- files that vanish, fill up, or belong to others -------------------------


def limited(size):
    """What makes a process unable to write files larger than `size` bytes."""
    import resource

    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_full_disk_keeps_the_old_checkpoint_and_the_names(checkpoint, tmp_path):
    before = checkpoint.read_bytes()
    saving = ['--save', checkpoint, '--save-every', 3, '--samples', 5]
    result = run('--load', checkpoint, '--steps', 20, *saving, preexec_fn=limited(5000))
    assert result.returncode == 1 and result.stdout.count('\n') == 5
    assert result.stderr.count(': not saved: ') >= 3 and 'Traceback' not in result.stderr
    assert checkpoint.read_bytes() == before
    assert os.listdir(checkpoint.parent) == [checkpoint.name]


def test_a_log_that_cannot_be_written_does_not_stop_the_training(tmp_path):
    log, path = tmp_path / 'log', tmp_path / 'model'
    arguments = ['--data', SMALL, *SIZES, '--steps', 800, '--log', log, '--save', path]
    result = run(*arguments, preexec_fn=limited(22_000))
    assert result.returncode == 1 and f'{log}: File too large: no more' in result.stderr
    assert load_checkpoint(path).step == 800
    assert result.stdout.count('\n') == 20


def test_a_model_whose_folder_vanishes_is_saved_elsewhere(tmp_path):
    folder, rescue = tmp_path / 'folder', tmp_path / 'rescue'
    folder.mkdir()
    rescue.mkdir()
    process = start(
        *LONG[:-1], 300, '--samples', 0,
        '--save', folder / 'model', env=env(TMPDIR=str(rescue)),
    )  # fmt: skip
    wait_for(process, 'step ')
    with paused(process):
        folder.rmdir()
    _, stderr = end(process)
    assert process.returncode == 1 and 'not saved' in stderr
    saved = re.search('saved as (.*?);', stderr)[1]
    assert saved.startswith(str(rescue)) and load_checkpoint(saved).step == 300


def test_what_appears_meanwhile_in_the_place_of_the_file_is_not_replaced(tmp_path):
    path = tmp_path / 'model.bin'
    process = start(*LONG[:-1], 300, '--save', path, '--samples', 0)
    wait_for(process, 'step ')
    with paused(process):
        path.write_text('precious')
    _, stderr = end(process)
    assert process.returncode == 0 and 'somebody else has written it' in stderr
    saved = re.search('saved as (.*?);', stderr)[1]
    assert path.read_text() == 'precious' and load_checkpoint(saved).step == 300
