"""The twin: our model in PyTorch; it adds some --steps to those of a checkpoint.

    python3 tests/torch_twin.py names.safetensors --steps 200 --batch-size 64
    torchrun --nproc-per-node 2 --local-ranks-filter 0 tests/torch_twin.py ...
"""

import json
import sys
from functools import partial
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn.functional import cross_entropy, rms_norm, scaled_dot_product_attention

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import microgpt  # noqa: E402


def read(path):
    """The tensors in a checkpoint, by name."""
    try:
        from safetensors.torch import load_file
    except ImportError:
        with open(path, 'rb') as file:
            tensors = json.loads(file.read(int.from_bytes(file.read(8), 'little')))
            numbers = torch.frombuffer(bytearray(file.read()), dtype=torch.float64)
        del tensors['__metadata__']
        for name, entry in tensors.items():
            start, end = (place // 8 for place in entry['data_offsets'])
            tensors[name] = numbers[start:end].reshape(entry['shape'])
        return tensors
    return load_file(path)


class Twin(nn.Module):
    """Our model, made of the tensors in a checkpoint, under the same names."""

    def __init__(self, config, tensors):
        super().__init__()
        self.n_head = config.n_head
        self.norm = partial(rms_norm, normalized_shape=[config.n_embd], eps=1e-5)
        for name in ('wte', 'wpe', 'lm_head'):
            self.register_parameter(name, nn.Parameter(tensors[name]))
        names = 'attn_wq', 'attn_wk', 'attn_wv', 'attn_wo', 'mlp_fc1', 'mlp_fc2'
        for i in range(config.n_layer):
            layer = [(name, tensors[f'layer{i}.{name}']) for name in names]
            self.add_module(f'layer{i}', nn.ParameterDict(layer))

    def forward(self, tokens):
        """The logits (batch, positions, vocab_size) for tokens (batch, positions)."""
        x = self.norm(self.wte[tokens] + self.wpe[: tokens.shape[1]])
        for layer in self.children():
            normed = self.norm(x)
            parts = [normed @ layer[f'attn_w{letter}'].T for letter in 'qkv']
            heads = torch.stack(parts).unflatten(-1, (self.n_head, -1)).transpose(2, 3)
            found = scaled_dot_product_attention(*heads, is_causal=True)
            x = x + found.transpose(1, 2).flatten(2) @ layer['attn_wo'].T
            x = x + (self.norm(x) @ layer['mlp_fc1'].T).relu() @ layer['mlp_fc2'].T
        return x @ self.lm_head.T


def document_losses(model, batch):
    """The mean loss of each document; padding comes last, where nothing sees it."""
    rows = [torch.tensor(tokens) for tokens in batch]
    tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
    logits = model(tokens[:, :-1].clamp(min=0))
    targets = tokens[:, 1:].to(logits.device)  # where they are -100, the loss is 0
    losses = cross_entropy(logits.mT, targets, reduction='none')
    return losses.sum(1) / (targets >= 0).sum(1)


def update(twin, tensors, step, rate, beta1=0.85, beta2=0.99, eps=1e-8):
    """Our Adam.update(), for the m and v among the tensors of a checkpoint."""
    for name, p in twin.named_parameters():
        m = tensors[f'adam.m.{name}'].lerp_(p.grad, 1 - beta1)
        v = tensors[f'adam.v.{name}'].lerp_(p.grad * p.grad, 1 - beta2)
        m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
        p.data -= rate * m_hat / (v_hat.sqrt() + eps)
        p.grad = None


def train(run, docs):
    """Train to the last step of a run, and set its parameters; yields the losses."""
    options, size = run.options, run.options.batch_size
    local_rank, rank, processes = distributed.get_node_local_rank(0), 0, 1
    device = f'cuda:{local_rank}' if torch.cuda.is_available() else 'cpu'
    tensors = {name: x.to(device) for name, x in read(options.load).items()}
    model = twin = Twin(options, tensors)
    if distributed.is_torchelastic_launched():
        distributed.init_process_group()
        rank, processes = distributed.get_rank(), distributed.get_world_size()
        model = nn.parallel.DistributedDataParallel(twin)
    for step in range(run.step, options.steps):
        places = range(step * size + rank, (step + 1) * size, processes)
        batch = [microgpt.document_tokens(docs[i % len(docs)], run) for i in places]
        loss = document_losses(model, batch).sum() * processes / size
        loss.backward()  # and, if there are several processes, the mean of all
        decay = microgpt.DECAYS[options.decay](step / options.steps)
        update(twin, tensors, step + 1, options.learning_rate * decay)
        yield loss.item()
    numbers = nn.utils.parameters_to_vector(twin.parameters()).tolist()
    for p, x in zip(run.params, numbers):
        p.data = x


def main(argv):
    """Train on and print names; all options but --steps are those of microgpt.py."""
    options, run = microgpt.read_options(['--load', *argv])
    microgpt.require(not (options.save or options.grad_clip), 'no --save, --grad-clip')
    options.steps += run.step
    data = microgpt.read_data(options, run)
    for step, loss in enumerate(train(run, data.train), run.step + 1):
        if step % 20 == 0:
            microgpt.say(f'step {step} / {options.steps} | loss {loss:.4f}')
    microgpt.print_names(run, data)


if __name__ == '__main__':
    main(sys.argv[1:])
