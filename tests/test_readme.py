"""README.md: what can rot in it is compared with the program."""

import inspect
import re
import subprocess
import sys

from conftest import SCRIPT

import experiments
import figures
import microgpt
import recipes
from microgpt import Value

TEXT = figures.README.read_text('utf-8')


def blocks(language):
    """The fenced blocks of a language, without the indentation that lists give them."""
    found = re.findall(rf'(?ms)^( *)```{language}\n(.*?)^ *```', TEXT)
    return [re.sub(rf'(?m)^{indent}', '', body) for indent, body in found]


def test_its_tables_are_those_of_the_program_and_all_figures_have_a_place():
    for name, block in figures.BLOCKS.items():
        path, pattern = figures.place(name)
        found = re.findall(pattern, path.read_text('utf-8'))
        assert len(found) == 1, name
        if name in ('part-1', 'part-2', 'options'):  # .ci/run compares runs, too
            assert found[0][1] == block()


def test_its_links_to_chapters_lead_there():
    assert TEXT.count('microgpt.py#L') > 20 and figures.relinked(TEXT) == TEXT


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
        if 'python3 microgpt.py' in line:
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
