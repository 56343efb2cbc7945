"""Sampling under control: what may be drawn, and which names are printed."""

import collections
import math
import random
import re

import pytest
from conftest import SIZES, SMALL, TINY, UNICODE, refused, run

import microgpt

LOGITS = [0.3, 2.0, -1.0, 1.2, 0.9]
EVERYTHING = {'temperature': 0.7, 'top_k': 0, 'top_p': 1.0}


def allowed(**options):
    return microgpt.restrict(LOGITS, **{**EVERYTHING, **options})


def test_without_restriction_every_token_may_be_drawn():
    assert allowed() == [0, 1, 2, 3, 4]
    assert allowed(top_k=5) == allowed(top_k=99) == [0, 1, 2, 3, 4]


def test_top_k_leaves_the_k_likeliest():
    assert allowed(top_k=3) == [1, 3, 4]
    assert allowed(top_k=1) == [1]


@pytest.mark.parametrize('temperature', [0.5, 0.7, 1.0, 3.0])
@pytest.mark.parametrize('top_p', [0.0, 0.3, 0.6, 0.85, 0.99])
def test_top_p_leaves_the_fewest_tokens_that_have_the_probability_p(top_p, temperature):
    weights = {i: math.exp(x / temperature) for i, x in enumerate(LOGITS)}
    kept = allowed(top_p=top_p, temperature=temperature)
    share = sum(weights[i] for i in kept) / sum(weights.values())
    least = min(kept, key=weights.get)
    assert share >= top_p
    assert len(kept) == 1 or share - weights[least] / sum(weights.values()) < top_p
    assert all(weights[i] <= weights[least] for i in weights if i not in kept)


def test_top_k_and_top_p_together_leave_what_both_allow():
    assert allowed(top_k=2, top_p=0.99) == [1, 3]


def test_a_temperature_of_zero_leaves_the_likeliest():
    assert allowed(temperature=0.0) == [1]


def test_restriction_changes_nothing_that_it_is_given():
    logits = list(LOGITS)
    microgpt.restrict(logits, 0.7, 2, 0.5)
    assert logits == LOGITS


def test_draws_have_the_probabilities_of_the_logits():
    rng, n = random.Random(5), 5000
    counts = collections.Counter(microgpt.draw(LOGITS, 0.7, rng) for _ in range(n))
    total = sum(math.exp(x / 0.7) for x in LOGITS)
    for token, x in enumerate(LOGITS):
        p = math.exp(x / 0.7) / total
        assert abs(counts[token] - n * p) <= 4 * math.sqrt(n * p * (1 - p))


def test_options_that_allow_everything_change_no_name():
    plain = run(*TINY).stdout
    assert run(*TINY, '--top-p', 1, '--top-k', 27).stdout == plain
    assert run(*TINY, '--temperature', 0, '--unique', '--samples', 1).stdout != plain


def test_every_name_begins_with_the_prompt():
    names = run(*TINY, '--prompt', 'kw', '--temperature', 2).stdout.splitlines()
    assert len(names) == 20 and len(set(names)) > 5
    assert all(name.startswith('kw') and len(name) <= 6 for name in names)
    assert run(*TINY, '--prompt', 'kwamea', '--samples', 1).stdout == 'kwamea\n'


def test_a_prompt_is_compared_in_its_normal_form():
    decomposed = run('--data', UNICODE, *SIZES, '--steps', 0, '--prompt', 'e\u0301')
    composed = run('--data', UNICODE, *SIZES, '--steps', 0, '--prompt', '\u00e9')
    assert decomposed.stdout == composed.stdout and decomposed.stdout.startswith(
        '\u00e9'
    )


def test_filters_hold_for_every_name():
    filters = ['--min-length', 2, '--max-length', 4, '--alphabetic', '--unique']
    result = run('--data', UNICODE, *SIZES, '--steps', 0, '--temperature', 5, *filters)
    names = result.stdout.splitlines()
    assert len(names) == len(set(names)) == 20
    assert all(2 <= len(name) <= 4 and microgpt.is_alphabetic(name) for name in names)


def test_names_of_letters_may_have_the_marks_of_their_script():
    assert microgpt.is_alphabetic('\u0905\u0928\u093f\u0932')  # Anil in Devanagari
    assert microgpt.is_alphabetic('zo\u00eb') and microgpt.is_alphabetic('zoe\u0308')
    assert not microgpt.is_alphabetic("o'neill") and not microgpt.is_alphabetic('')


def test_novel_names_are_not_in_the_data(tmp_path):
    data = tmp_path / 'data'
    data.write_text('a\nb\n')
    settings = ['--data', data, '--steps', 0, '--block-size', 2, '--temperature', 5]
    assert {'a', 'b'} <= set(run(*settings).stdout.split('\n'))
    assert not {'a', 'b'} & set(run(*settings, '--novel').stdout.split('\n'))


def test_where_names_run_out_a_line_says_how_many_are_missing_and_why(tmp_path):
    data = tmp_path / 'data'
    data.write_text('a\n')
    result = run('--data', data, '--steps', 0, '--block-size', 1, '--unique')
    assert sorted(result.stdout.split('\n')) == ['', '', 'a']
    assert (
        '18 names are missing, for too many were refused: 1998 by --unique'
        in result.stderr
    )


def test_the_share_of_new_names_is_told(tmp_path):
    result = run('--data', SMALL, '--steps', 30)
    known = set(microgpt.load_docs(SMALL))
    new = sum(name not in known for name in result.stdout.splitlines())
    assert f'{new} of 20 names are new (not in the data)' in result.stderr


def test_characters_that_the_model_does_not_know_are_named():
    refused(run(*TINY, '--inspect', 'żółw'), 'vocabulary', 'ó', 'ż')
    refused(run(*TINY, '--prompt', 'Q'), 'vocabulary', 'Q')


def test_control_characters_in_names_are_printed_as_escapes(tmp_path):
    data = tmp_path / 'data'
    data.write_text('a\x1b[31m\nb\x07\n')
    result = run('--data', data, '--steps', 0, '--temperature', 5, '--samples', 50)
    assert '\x1b' not in result.stdout and '\\x1b' in result.stdout
    assert re.search(r'\\x07', result.stdout)
