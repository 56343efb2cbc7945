"""The twin in PyTorch: by other means, it arrives at the same numbers."""

import subprocess
import sys

import pytest
from conftest import SMALL, TINY

import microgpt
from microgpt import document_tokens, load_checkpoint, numbers

torch = pytest.importorskip('torch', reason='the twin needs PyTorch: pip install torch')
torch.set_num_threads(1)  # in tensors so small, more threads only wait for each other
import torch_twin  # noqa: E402


@pytest.fixture
def path(tmp_path, cli):
    """The path of a checkpoint of a tiny model with two layers, after 12 steps."""
    path = tmp_path / 'names.safetensors'
    assert cli(*TINY, '--n-layer', 2, '--block-size', 7, '--save', path).returncode == 0
    return path


def trained(*settings):
    """The losses of the twin, and the parameters that it has learnt."""
    options, run = microgpt.read_options(['--load', *settings])
    losses = list(torch_twin.train(run, microgpt.read_data(options, run).train))
    return losses, numbers(run.params)


def test_it_has_the_names_and_the_logits_of_the_plain_model(path):
    run = load_checkpoint(path)
    twin = torch_twin.Twin(run.options, torch_twin.read(path))
    assert list(twin.state_dict()) == list(microgpt.tensors(run.model))
    for doc in microgpt.load_docs(SMALL):
        tokens = document_tokens(doc, run)[:-1]
        cache = microgpt.new_cache(run.model)
        logits = [microgpt.gpt(run.model, t, i, cache) for i, t in enumerate(tokens)]
        found = twin(torch.tensor([tokens])).flatten().tolist()
        assert found == pytest.approx([x.data for xs in logits for x in xs], abs=1e-12)


@pytest.mark.parametrize('size', [1, 2, 30])
def test_a_padded_batch_has_the_losses_and_gradients_of_the_tool(size, path):
    run = load_checkpoint(path)
    batch = [document_tokens(doc, run) for doc in microgpt.load_docs(SMALL)[:size]]
    losses, mean = microgpt.forward(run, batch, [], [])
    mean.backward()
    twin = torch_twin.Twin(run.options, torch_twin.read(path))
    found = torch_twin.document_losses(twin, batch)
    found.mean().backward()
    assert found.tolist() == pytest.approx(losses, abs=1e-12)
    gradients = torch.cat([p.grad.flatten() for p in twin.parameters()]).tolist()
    assert gradients == pytest.approx([p.grad for p in run.params], abs=1e-10)


@pytest.mark.parametrize('settings', [[], ['--batch-size', '3', '--decay', 'cosine']])
def test_it_goes_on_with_the_losses_and_names_of_the_tool(settings, path, cli, capsys):
    log = path.with_name('log')
    names = cli('--load', path, '--steps', 32, *settings, '--log', log).stdout
    losses = [float(row.split(',')[1]) for row in log.read_text().split()[1:]]
    found, _ = trained(str(path), '--steps', '32', *settings)
    assert len(found) == 20 and found == pytest.approx(losses, abs=1e-9)
    torch_twin.main([str(path), '--steps', '20', *settings])
    assert capsys.readouterr().out == names


def test_two_processes_learn_what_one_learns(path):
    settings = [str(path), '--steps', '32', '--batch-size', '3']  # shares of 2 and 1
    command = ['env', 'CUDA_VISIBLE_DEVICES=', sys.executable, '-m']
    command += ['torch.distributed.run', '--standalone', '--nproc-per-node', '2']
    command += ['--local-ranks-filter', '1', __file__, *settings]  # one of them prints
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if result.returncode and 'torch_twin' not in result.stderr:
        pytest.skip('torchrun cannot be started here')
    found = [float(word) for word in result.stdout.split()]
    assert found == pytest.approx(trained(*settings)[1], abs=1e-12)


def test_its_own_reader_and_safetensors_read_the_same_numbers(path, monkeypatch):
    theirs = pytest.importorskip('safetensors.torch').load_file(path)
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)  # as if it were absent
    ours = torch_twin.read(path)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


if __name__ == '__main__':  # under torchrun
    print(*trained(*sys.argv[1:])[1])
