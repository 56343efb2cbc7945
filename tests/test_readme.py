"""README.md: what can rot in it is compared with the program."""

import re
import subprocess
import sys

from conftest import README, SCRIPT, run

import experiments
import microgpt
from microgpt import Value

TEXT = README.read_text('utf-8')


def blocks(language):
    """The fenced blocks of a language, without the indentation that lists give them."""
    found = re.findall(rf'(?ms)^( *)```{language}\n(.*?)^ *```', TEXT)
    return [re.sub(rf'(?m)^{indent}', '', body) for indent, body in found]


def test_the_run_that_it_shows_is_that_of_the_first_command(tmp_path):
    shown, inspected = blocks('text')
    result = run('--inspect', 'emma', cwd=tmp_path)
    printed = re.sub(
        r'\| [\d.]+ steps/s.*', '', result.stderr + result.stdout
    ).splitlines()
    for line in shown.splitlines() + inspected.splitlines():
        line = re.sub(r'\| [\d.]+ steps/s.*', '', line)
        assert line == '...' or line in printed
    five = re.split(', | and ', re.search(r'such as (.*)\.', TEXT)[1])
    assert len(five) == 5 and set(five) <= set(result.stdout.splitlines())
    held_out = re.search(r'held-out loss ([\d.]+)', result.stderr)[1]
    assert f'from {held_out} to' in TEXT


def test_the_notebook_examples_run_in_the_order_in_which_they_stand(tmp_path):
    (tmp_path / 'input.txt').write_bytes(SCRIPT.with_name('input.txt').read_bytes())
    (tmp_path / 'microgpt.py').write_bytes(SCRIPT.read_bytes())
    code = '\n'.join(blocks('python'))
    for steps in ('steps=200', "'500'"):
        assert steps in code
        code = code.replace(steps, steps.replace('00', ''))  # fewer, to save time
    command = [sys.executable, '-c', code]
    result = subprocess.run(
        command, cwd=tmp_path, capture_output=True, encoding='utf-8'
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == 'Value(data=2.0, grad=4.0) Value(data=3.0, grad=2.0)'
    assert any(line.startswith('attention') for line in lines)


def test_its_options_are_those_of_the_program():
    rows = re.findall(r'(?m)^\| `(--[a-z-]+)[^`]*` \| (.*?) \|$', TEXT)
    parser = microgpt.option_parser()
    actions = [action for action in parser._actions if action.dest != 'help']
    helps = [action.help.split(' (default: ')[0] for action in actions]  # 3.9 adds it
    assert rows == list(zip([action.option_strings[0] for action in actions], helps))
    known = {flag for action in actions for flag in action.option_strings}
    mine = TEXT.replace('--quiet', '').replace('--to ', '')
    assert set(re.findall(r'(?<![\w-])--[a-z][a-z-]+', mine)) <= known


def test_its_map_leads_to_every_chapter():
    links = re.findall(r'\[(\d+ [^\]]+)\]\(microgpt\.py#L(\d+)\)', TEXT)
    lines = SCRIPT.read_text('utf-8').splitlines()
    chapters = [
        line[5:].replace('. ', ' ', 1)
        for line in lines
        if re.match(r'# ## \d+\.', line)
    ]
    assert [title for title, _ in links] == chapters
    for title, number in links:
        assert lines[int(number) - 1] == '# ## ' + title.replace(' ', '. ', 1)


def test_the_graph_that_it_shows_is_drawn_by_the_program():
    a, b = Value(2.0), Value(3.0)
    loss = a * b + a
    loss.backward()
    assert microgpt.mermaid(loss, a=a, b=b, loss=loss) + '\n' in blocks('mermaid')


def test_the_lines_that_it_and_the_experiments_change_are_there():
    source = SCRIPT.read_text('utf-8')
    assert source.count('rng.gauss(0, std)') == source.count('std = 0.08') == 1
    assert source.count('add(x, multi_head(') == 1
    for part in experiments.PARTS:
        assert experiments.changed(part).Config().n_embd == 16
