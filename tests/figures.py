"""Fills the figures in README.md and in chapter 12 in, from runs.

    python3 tests/figures.py [NAME ...]            all blocks, or these
    python3 tests/figures.py --check [NAME ...]    says which of them are stale

A block of README stands between `<!-- figures: NAME -->` and `<!-- end -->`.
All of them take two hours on two cores, for the sake of `parts` and `recipes`;
`run`, `inspect` and `chapter` take half a minute, `options` and both maps no
time. Speeds differ from run to run, so `speed` is always stale.
"""

import argparse
import functools
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / 'README.md'
PROGRAM = ROOT / 'microgpt.py'
sys.path.insert(0, str(ROOT))
import microgpt  # noqa: E402

FOLDER = Path(tempfile.mkdtemp())
LONG = ['--steps', '20000', '--learning-rate', '0.003']


@functools.lru_cache(maxsize=None)
def output(*command):
    """The lines that a command prints, on stderr and then on stdout."""
    pipes = {'capture_output': True, 'encoding': 'utf-8', 'cwd': ROOT}
    result = subprocess.run([sys.executable, *command], **pipes, check=True)
    return result.stderr.splitlines() + result.stdout.splitlines()


def program(*options):
    return output('microgpt.py', *options)


def trained(name, *options):
    """The path of a model that was trained with these options."""
    path = FOLDER / f'{name}.safetensors'
    if not path.exists():
        program(*options, '--samples', '0', '--save', str(path))
    return str(path)


def fenced(lines, language='text'):
    return '\n'.join([f'```{language}', *lines, '```'])


def attention(lines):
    """Of a picture, the part that shows attention."""
    first = next(i for i, line in enumerate(lines) if line.startswith('attention'))
    return lines[first:]


# ---- blocks ------------------------------------------------------------------


def run():
    """The session that README begins with."""
    lines = program()
    new = lines.index(next(line for line in lines if ' names are new' in line))
    names = lines[new + 1 :]
    return fenced([*lines[:new], *names[:8], '...', lines[new]])


def learnt():
    """Where the heads look after 20,000 steps."""
    path = trained('long', *LONG)
    picture = program('--load', path, '--samples', '0', '--inspect', 'katarina')
    return fenced(attention(picture)[:12])  # the first two heads


def inspect():
    path = trained('short')
    return fenced(program('--load', path, '--samples', '0', '--inspect', 'zoe')[2:])


CHANGES = {  # to chapter 7: what stands there, and what to put in its place
    'as it is': (),
    'all parameters equal': ('rng.gauss(0, std)', 'std'),
    'large parameters': ('std=0.08', 'std=1.0'),
}


def changes():
    """What becomes of the loss when a line of chapter 7 is changed."""
    rows = ['| chapter 7 | first loss | held-out loss |', '|---|---|---|']
    for name, change in CHANGES.items():
        source = PROGRAM.read_text('utf-8')
        path = FOLDER / f'{len(rows)}.py'
        path.write_text(source.replace(*change) if change else source, 'utf-8')
        data = str(ROOT / 'input.txt')
        lines = '\n'.join(output(str(path), '--samples', '0', '--data', data))
        first = re.search(r'step +1 / 1000 \| mean loss ([\d.]+)', lines)[1]
        held_out = re.search(r'held-out loss ([\d.]+)', lines)[1]
        what = f'{name}: `{change[0]}` becomes `{change[1]}`' if change else name
        rows.append(f'| {what} | {float(first):.2f} | {float(held_out):.2f} |')
    return '\n'.join(rows)


def temperatures():
    rows = ['| `--temperature` | names |', '|---|---|']
    for temperature in ('0', '0.1', '0.5', '1', '1.5'):
        options = ['--samples', '6', '--seed', '1', '--temperature', temperature]
        names = program('--load', trained('short'), *options)[2:]
        rows.append(f'| {temperature} | {", ".join(names)} |')
    return '\n'.join(rows)


def chapters():
    """Pairs of a chapter's number and title, and its line."""
    lines = PROGRAM.read_text('utf-8').splitlines()
    found = [re.match(r'# ## (\d+)\. (.*)', line) for line in lines]
    return [(int(m[1]), m[2], i) for i, m in enumerate(found, 1) if m]


def map_of(numbers):
    links = [
        f'- [{number} {title}](microgpt.py#L{line})'
        for number, title, line in chapters()
        if number in numbers
    ]
    return '\n'.join(links)


def options():
    rows = ['| option | |', '|---|---|']
    for action in microgpt.option_parser()._actions[1:]:
        words = f'{action.option_strings[0]} {action.metavar or ""}'.strip()
        rows.append(f'| `{words}` | {action.help} |')
    return '\n'.join(rows)


def chapter():
    """What main prints, as chapter 12 shows it."""
    lines = output('-c', 'import microgpt; microgpt.main()')
    names = lines.index(next(line for line in lines if '|' not in line))
    shown = [*lines[:2], '...', lines[names - 1], *lines[names : names + 4], '...']
    return '\n'.join(['# ' + line for line in shown])


def parts():
    """What each part of the model is for."""
    return '\n'.join(output('tests/experiments.py', '--table', 'parts', '--long'))


def recipes():
    """What everybody changes, and what it does to the loss."""
    settings = '--measure', '--steps', '1000', '5000', '--seeds', '3'
    return '\n'.join(output('tests/recipes.py', *settings))


BLOCKS = {
    'run': run,
    'learnt': learnt,
    'inspect': inspect,
    'changes': changes,
    'temperatures': temperatures,
    'part-1': lambda: map_of(range(1, 14)),
    'part-2': lambda: map_of(range(14, 99)),
    'options': options,
    'chapter': chapter,
    'worth': lambda: '\n'.join(output('tests/experiments.py', '--table', 'worth')),
    'parts': parts,
    'recipes': recipes,
    'speed': lambda: '\n'.join(output('tests/benchmark.py')),
}


# ---- filling in --------------------------------------------------------------


def place(name):
    """The file of a block, and a pattern of it: what is before, inside, and after."""
    if name == 'chapter':
        return PROGRAM, r'(?s)(# ```text\n)(# step    1 / 1000 \| mean.*?)(\n# ```)'
    return README, rf'(?s)( *<!-- figures: {name} -->\n)(.*?)(\n *<!-- end -->)'


def relinked(text):
    """README's text, with links that lead to the chapters where they are now."""
    lines = {number: line for number, _, line in chapters()}
    link = r'(\[(?:chapter\s)?(\d+)[^\]]*\]\(microgpt\.py#L)\d+'
    return re.sub(link, lambda match: f'{match[1]}{lines[int(match[2])]}', text)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('names', nargs='*', choices=[*BLOCKS, []], metavar='NAME')
    parser.add_argument('--check', action='store_true')
    args = parser.parse_args()
    stale = 0
    for name in args.names or BLOCKS:
        path, pattern = place(name)
        text = path.read_text('utf-8')
        before = re.search(pattern, text)[2]
        after = BLOCKS[name]()
        differs = before != after
        stale += differs
        print(f'{name}: {"stale" if differs else "as it is"}', flush=True)
        if not args.check:
            begin, end = re.search(pattern, text).span(2)
            text = text[:begin] + after + text[end:]
            path.write_text(relinked(text) if path == README else text, 'utf-8')
    return 1 if args.check and stale else 0


if __name__ == '__main__':
    sys.exit(main())
