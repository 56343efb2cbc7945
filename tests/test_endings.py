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
SHORT = [*LONG[:-1], 300, '--samples', 0]


def ended(process):
    """The output of a process that ends; its workers, which hold stderr, end too."""
    stdout, stderr = process.communicate(timeout=30)
    assert 'Traceback' not in stderr, stderr
    return stdout, stderr


# ---- signals -----------------------------------------------------------------


SIGNALS = {
    'SIGINT': (LONG, 'Ctrl-C', 130),
    'SIGTERM': (LONG, 'a signal', 143),
    'SIGHUP': (BATCH, 'a signal', 129),
}


@pytest.mark.parametrize('name', SIGNALS)
def test_a_signal_stops_in_order_saves_and_says_how_to_go_on(name, tmp_path):
    arguments, cause, status = SIGNALS[name]
    path = tmp_path / 'model'
    process = start(*arguments, '--save', path)
    wait_for(process, 'step    100')
    process.send_signal(getattr(signal, name))
    stdout, stderr = ended(process)
    step = load_checkpoint(path).step
    assert (process.returncode, stdout) == (status, '') and step >= 100
    assert stderr.splitlines()[-2:] == [
        f'saved as {path}; go on: --load {path} --save {path}',
        f'microgpt: stopped by {cause} after step {step}',
    ]


@pytest.mark.parametrize('arguments', [LONG, BATCH], ids=['one process', 'workers'])
def test_ctrl_c_at_any_moment_saves_what_was_learnt(arguments, tmp_path):
    rng = random.Random(3)
    for i in range(3):
        path = tmp_path / f'model {i}'
        process = start(*arguments, '--save', path, start_new_session=True)
        wait_for(process, 'num params')
        time.sleep(rng.uniform(0.005, 0.5))
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all, workers too
        _, stderr = ended(process)
        assert process.returncode == 130, stderr
        steps = int((re.search(r'after step (\d+)', stderr) or [0, 0])[1])
        assert path.exists() == (steps > 0)  # where nothing was learnt, there is no file
        assert not steps or load_checkpoint(path).step == steps


def test_ctrl_c_stops_at_once_only_a_second_after_the_first_signal(capsys):
    with microgpt.noted_signals() as received:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        time.sleep(1.1)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert received == [signal.SIGTERM, signal.SIGINT, signal.SIGTERM]
    assert capsys.readouterr().err.count('Ctrl-C again: at once, without saving') == 1


def test_ctrl_c_in_a_step_of_many_documents_does_not_wait_for_all_of_them(tmp_path):
    process = start(*LONG, '--batch-size', 100_000, '--save', tmp_path / 'model')
    wait_for(process, 'num params')
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    assert 'after step 0' in ended(process)[1] and process.returncode == 130


def test_an_ignored_ctrl_c_stays_ignored():
    def ignore():
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    process = start(*SHORT, preexec_fn=ignore)
    wait_for(process, 'step ')
    process.send_signal(signal.SIGINT)
    assert 'step    300' not in ended(process)[1] and process.returncode == 0


def test_ctrl_c_while_sampling_ends_with_a_line():
    process = start(*TINY, '--samples', 10**6)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert ended(process)[1].splitlines()[-1] == 'microgpt: stopped by Ctrl-C'
    assert process.returncode == 130


def test_kill_9_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    path, rng, step = tmp_path / 'model', random.Random(1), 0
    for _ in range(6):
        model = ['--load', path] if path.exists() else LONG
        process = start(*model, '--save', path, '--save-every', 1)
        wait_for(process, 'step ')
        time.sleep(rng.uniform(0.005, 0.1))
        process.kill()
        process.communicate()
        last, step = step, load_checkpoint(path).step if path.exists() else 0
        assert step >= last
    assert step > 0


# ---- memory, workers, threads ------------------------------------------------


def test_memory_that_runs_out_in_training_does_not_lose_the_model(
    tmp_path, cli, monkeypatch
):
    def greedy(*_):
        raise MemoryError

    def note(progress, *_):
        if progress.run.step == 3:
            monkeypatch.setattr(microgpt, 'finite_loss', greedy)

    monkeypatch.setattr(microgpt.Progress, 'note', note)
    result = cli(*TINY, '--save', tmp_path / 'model')
    refused(result, 'out of memory', status=1)
    assert load_checkpoint(tmp_path / 'model').step == 3


def workers_of(process):
    """The process ids of the workers of a running program."""
    found = []
    for pid in filter(str.isdigit, os.listdir('/proc')):
        with open(f'/proc/{pid}/stat') as stat, open(f'/proc/{pid}/cmdline') as command:
            is_child = stat.read().rsplit(')', 1)[1].split()[1] == str(process.pid)
            found += [int(pid)] if is_child and 'spawn_main' in command.read() else []
    return found


@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='finds processes by /proc')
@pytest.mark.parametrize('moment', ['num params', 'step      1'])
@pytest.mark.parametrize('victim', ['worker', 'parent'])
def test_a_killed_process_ends_all_and_the_model_is_saved(victim, moment, tmp_path):
    path = tmp_path / 'model'
    process = start(*BATCH, '--save', path, '--save-every', 1)
    wait_for(process, moment)
    while not (pids := workers_of(process)):
        assert process.poll() is None
    os.kill(pids[0] if victim == 'worker' else process.pid, signal.SIGKILL)
    _, stderr = ended(process)
    if victim == 'worker':
        assert process.returncode == 1
        assert stderr.splitlines()[-1] == 'microgpt: a worker process has died'
    assert not path.exists() or load_checkpoint(path).step >= 1


def test_workers_are_left_out_where_they_cannot_be_started(tmp_path):
    options = list(map(str, [*TINY, '--batch-size', 2, '--workers', 2]))
    lines = [f'import sys; sys.path.insert(0, {str(SCRIPT.parent)!r})']
    lines += ['import microgpt', f'microgpt.cli({options})']  # without a main guard
    (tmp_path / 'script.py').write_text('\n'.join(lines))
    outputs = set()
    for command in ([tmp_path / 'script.py'], ['-', *options]):
        with open(SCRIPT, encoding='utf-8') as program:
            pipes = {'stdin': program, 'capture_output': True, 'encoding': 'utf-8'}
            result = subprocess.run([sys.executable, *command], **pipes)
        assert result.stderr.count('without workers') == 1 and result.returncode == 0
        outputs.add(result.stdout)
    assert len(outputs) == 1


def test_two_runs_at_once_in_one_process_are_refused(cli, monkeypatch):
    tiny, second = list(map(str, TINY)), []

    def note(progress, *_):
        thread = threading.Thread(target=lambda: second.append(microgpt.cli(tiny)))
        thread.start()
        thread.join()

    monkeypatch.setattr(microgpt.Progress, 'note', note)
    result = cli(*TINY)
    assert set(second) == {2} and result.returncode == 0
    assert 'another run is under way in this process' in result.stderr


def test_off_the_main_thread_it_trains_without_signal_handlers(tmp_path):
    statuses, args = [], [*TINY, '--save', tmp_path / 'model', '--samples', 0]
    call = list(map(str, args))
    thread = threading.Thread(target=lambda: statuses.append(microgpt.cli(call)))
    thread.start()
    thread.join()
    assert statuses == [0] and (tmp_path / 'model').exists()


# ---- output ------------------------------------------------------------------


def test_training_goes_on_when_nobody_reads_stderr(tmp_path):
    process = start(*TINY, '--samples', 3)
    process.stderr.close()
    assert process.stdout.read().count('\n') == 3 and process.wait() == 0
    log = tmp_path / 'log'
    result = run(*TINY, '--log', log, preexec_fn=lambda: os.close(2))
    assert result.returncode == 0 and result.stdout.count('\n') == 20
    assert log.read_text().count('\n') == 13  # nothing else got into it


def test_a_pipe_that_is_closed_early_is_no_error():
    process = start(*TINY, '--samples', 10**6)
    process.stdout.readline()
    process.stdout.close()
    assert not re.search('Error|Exception|microgpt:', process.stderr.read())
    assert process.wait(timeout=20) == 0


def test_names_that_cannot_be_printed_are_told(tmp_path):
    refused(run(*TINY, preexec_fn=lambda: os.close(1)), 'standard output is closed')
    command = [sys.executable, str(SCRIPT), *TINY, '--save', str(tmp_path / 'model')]
    with open('/dev/full', 'w') as full:
        pipes = {'stdout': full, 'stderr': subprocess.PIPE, 'encoding': 'utf-8'}
        result = subprocess.run(command, **pipes)
    assert result.returncode == 1
    assert 'microgpt: standard output: No space left on device' in result.stderr
    assert (tmp_path / 'model').exists()


# ---- files that fill up, vanish, or belong to others -------------------------


def limited(size):
    """What makes a process unable to write files larger than `size` bytes."""
    import resource

    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_full_disk_keeps_the_old_checkpoint_and_the_names(checkpoint):
    before = checkpoint.read_bytes()
    saving = ['--save', checkpoint, '--save-every', 3, '--samples', 5]
    result = run('--load', checkpoint, '--steps', 20, *saving, preexec_fn=limited(5000))
    assert result.returncode == 1 and result.stdout.count('\n') == 5
    assert result.stderr.count(': not saved: File too large') >= 3
    assert checkpoint.read_bytes() == before
    assert os.listdir(checkpoint.parent) == [checkpoint.name]


def test_a_log_that_cannot_be_written_does_not_stop_the_training(tmp_path):
    log = tmp_path / 'log'
    result = run(*SHORT, '--log', log, '--samples', 4, preexec_fn=limited(5000))
    assert result.returncode == 1 and result.stdout.count('\n') == 4
    assert result.stderr.count(f'{log}: File too large: no more rows') == 1


def test_a_model_whose_folder_vanishes_is_saved_elsewhere(tmp_path):
    folder, rescue = tmp_path / 'folder', tmp_path / 'rescue'
    folder.mkdir()
    rescue.mkdir()
    process = start(*SHORT, '--save', folder / 'model', env=env(TMPDIR=str(rescue)))
    wait_for(process, 'step ')
    with paused(process):
        folder.rmdir()
    _, stderr = ended(process)
    saved = re.search('saved as (.*?);', stderr)[1]
    assert process.returncode == 1 and 'not saved: No such file' in stderr
    assert saved.startswith(str(rescue)) and load_checkpoint(saved).step == 300
