"""README.md: what can rot in it is compared with the program."""

import inspect
import re
import subprocess
import sys

import pytest
from conftest import README, SCRIPT

import experiments
import figures
import microgpt
import recipes
from microgpt import Value

TEXT = README.read_text('utf-8')


def blocks(language):
    """The fenced blocks of a language, without the indentation that lists give them."""
    found = re.findall(rf'(?ms)^( *)```{language}\n(.*?)^ *```', TEXT)
    return [re.sub(rf'(?m)^{indent}', '', body) for indent, body in found]


@pytest.mark.parametrize('name', ['part-1', 'part-2', 'options'])
def test_its_tables_are_those_of_the_program(name):  # .ci/run compares runs, too
    path, pattern = figures.place(name)
    shown = re.search(pattern, path.read_text('utf-8'))[2]
    assert figures.steady(shown) == figures.steady(figures.BLOCKS[name]())


def test_every_block_of_figures_has_its_place():
    for name in figures.BLOCKS:
        path, pattern = figures.place(name)
        assert len(re.findall(pattern, path.read_text('utf-8'))) == 1, name


def test_its_links_to_chapters_lead_there():
    lines = {number: line for number, _, line in figures.chapters()}
    links = re.findall(r'\[(?:chapter\s)?(\d+)[^\]]*\]\(microgpt\.py#L(\d+)\)', TEXT)
    assert len(links) > 20
    assert all(lines[int(number)] == int(line) for number, line in links)


def test_the_notebook_examples_run_in_the_order_in_which_they_stand(tmp_path):
    for name in ('input.txt', 'microgpt.py'):
        (tmp_path / name).write_bytes(SCRIPT.with_name(name).read_bytes())
    code = '\n'.join(blocks('python'))
    for steps in ('steps=200', "'500'"):
        assert steps in code
        code = code.replace(steps, steps.replace('00', ''))  # fewer, to save time
    pipes = {'cwd': tmp_path, 'capture_output': True, 'encoding': 'utf-8'}
    result = subprocess.run([sys.executable, '-c', code], **pipes)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == 'Value(data=2.0, grad=4.0) Value(data=3.0, grad=2.0)'
    assert any(line.startswith('attention') for line in lines)


def test_its_recipes_use_only_options_that_exist():
    parser = microgpt.option_parser()
    known = {flag for action in parser._actions for flag in action.option_strings}
    for line in '\n'.join(blocks('sh')).splitlines():
        if 'microgpt.py' in line:
            assert set(re.findall(r'(?<=\s)--[a-z-]+', line)) <= known, line


def test_the_graph_that_it_shows_is_drawn_by_the_program():
    a, b = Value(2.0), Value(3.0)
    loss = a * b + a
    loss.backward()
    assert microgpt.mermaid(loss, a=a, b=b, loss=loss) + '\n' in blocks('mermaid')


def test_its_check_of_gradients_is_that_of_the_recipes():
    assert inspect.getsource(recipes.check_gradients) in TEXT


def test_the_lines_that_it_and_the_experiments_change_are_there():
    source = SCRIPT.read_text('utf-8')
    for change in filter(None, figures.CHANGES.values()):
        assert source.count(change[0]) == 1
    for part in experiments.PARTS:
        assert experiments.changed(part).Config().n_embd == 16
