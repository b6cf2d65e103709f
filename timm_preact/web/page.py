"""What the page looks like, in Gradio; what it shows is made by the modules of the tabs."""
from functools import partial
from html import escape
from typing import Any, Callable, Iterator, List, Sequence

import gradio as gr

from ..catalog import DEMO_MODEL
from ..unit import MERGES, PLACEMENTS
from .commands import evaluate_command, predict_command, propagate_command
from .compare import compare_networks
from .limits import MAX_WAITING, sentence
from .networks import list_here
from .predict import LAST, TOP_K, list_samples, predict
from .signals import DEPTHS, IMAGES, choose, measure_variants

__all__ = ['CSS', 'build', 'choose_theme']

TITLE = 'Pre-activation residual networks'
INTRO = f"""# {TITLE}
Networks of [Identity Mappings in Deep Residual Networks](https://arxiv.org/abs/1603.05027) at work. What you drop here
stays on the machine that runs this page, and is deleted after ten minutes."""
SIGNAL = """Networks as created, and with weights that ship, on eight test images of CIFAR-10: above, how the variance
of the signal grows; below, what is left of the gradient on its way back, and of what came through the shortcuts."""
FIRST = 'ship'  # the sample chosen when the page opens
DROP = 160  # pixels that an empty field for a file needs
# thumbnails as small as the images are, as many in a row as fit, in a frame as high as they are; captions to the end
CSS = """
#samples .grid-container { grid-template-columns: repeat(auto-fill, minmax(72px, 1fr)); }
#samples .grid-wrap { min-height: 0; max-height: none; }
#differ .caption-label { white-space: normal; }
"""
VARIANTS = (('full', 'add', 110), ('orig', 'const_scale', 110), ('none', 'add', 110))
HEAVY = dict(concurrency_limit=1, concurrency_id='heavy', api_visibility='private')
QUICK = dict(HEAVY, trigger_mode='multiple')  # none is dropped while the one before is answered
LIGHT = dict(queue=False, api_visibility='private')


def choose_theme() -> Any:
    """Gradio's own in the fonts of the system, so that none is fetched."""
    return gr.themes.Default(font=['system-ui', 'sans-serif'], font_mono=['ui-monospace', 'monospace'])


def say(text: str) -> str:
    """A sentence as HTML that a screen reader reads out."""
    return f'<p role="status">{escape(text)}</p>' if text else ''


def answering(work: Callable[..., Iterator[Sequence[Any]]], count: int) -> Callable:
    """A listener of Gradio's: what `work` yields, `count` values and a sentence, or the sentence of its error."""

    def listener(*values: Any, progress: Any = gr.Progress()) -> Iterator[List[Any]]:
        try:
            for *found, text in work(*values, progress=progress):
                yield [*found, say(text)]
        except Exception as e:  # the server stays up whatever was sent
            yield [*[None] * count, say(sentence(e))]

    return listener


def answer_predict(file: Any, chosen: int, network: str, stage: str, progress: Any) -> Iterator[Sequence[Any]]:
    yield from predict(file, chosen, network, stage)


def answer_signal(*values: Any, progress: Any) -> Iterator[Sequence[Any]]:
    rows = [values[i:i + 3] for i in range(0, len(values), 3)]
    variants = [choose(*row) for row in rows if row[0] != 'none']
    for figure, sentences, commands in measure_variants(variants, lambda share, title: progress(share, desc=title)):
        yield figure, '\n\n'.join(f'**{title}:** {text}' for title, text in sentences), commands, ''


def answer_compare(*values: Any, progress: Any) -> Iterator[Sequence[Any]]:
    found = compare_networks(values[:2], values[2:], lambda share, title: progress(share, desc=title))
    yield found.rows, found.images, found.command, found.summary


def choose_network(label: str, value: str) -> gr.Dropdown:
    return gr.Dropdown(list_here(), value=value, label=label, allow_custom_value=True,
                       info='with weights here, or a public repository on the Hub as ORG/NAME')


def show_command(value: str) -> gr.Code:
    return gr.Code(value, language=None, label='The same on the command line', interactive=False, wrap_lines=True,
                   show_line_numbers=False, lines=1, max_lines=8, buttons=['copy'])


def build_predict(page: gr.Blocks) -> None:
    samples = list_samples()
    chosen = gr.State(next(i for i, (_, name) in enumerate(samples) if name == FIRST))
    with gr.Row():
        with gr.Column():
            file = gr.File(label='An image of your own', height=DROP)
            gr.Markdown('or one of ten test images of CIFAR-10:')
            gallery = gr.Gallery(
                samples, label='Test images', show_label=False, elem_id='samples', height='auto', allow_preview=False,
                buttons=[], interactive=False)
            network = choose_network('Network', DEMO_MODEL)
            stage = gr.Radio([*'1234', LAST], value=LAST, label='Stage whose look is drawn')
            button = gr.Button('Predict', variant='primary')
        with gr.Column():
            said = gr.HTML()
            guesses = gr.Label(label=f'The {TOP_K} most probable classes', num_top_classes=TOP_K)
            gr.Markdown('Where it looks for the first of them, by Grad-CAM: yellow most, dark blue least.')
            looks = gr.Image(label='Grad-CAM', show_label=False, format='png', interactive=False, buttons=[],
                             alt_text='The image as the network gets it, under the heat of Grad-CAM')
    command = show_command(predict_command(f'{FIRST}.png', DEMO_MODEL, None, TOP_K))
    answer, answers = answering(answer_predict, 3), [guesses, looks, command, said]
    for event in (page.load, button.click, file.upload):
        event(answer, [file, chosen, network, stage], answers, show_progress_on=[guesses], **QUICK)

    def take(network: str, stage: str, event: gr.SelectData) -> Iterator[List[Any]]:
        for answered in answer(None, event.index, network, stage):
            yield [None, event.index, *answered]

    gallery.select(take, [network, stage], [file, chosen, *answers], show_progress_on=[guesses], **QUICK)


def build_signal() -> None:
    gr.Markdown(SIGNAL)
    choices = []
    for place, (placement, merge, depth) in enumerate(VARIANTS, 1):
        with gr.Row(equal_height=True):
            none = ['none'] if placement == 'none' else []
            choices += [
                gr.Dropdown([*none, *PLACEMENTS], value=placement, label=f'Placement of activations, {place}'),
                gr.Dropdown(list(MERGES), value=merge, label=f'Merge, {place}'),
                gr.Number(depth, precision=0, label=f'Layers, {place}: {DEPTHS[0]} to {DEPTHS[1]}')]
    button = gr.Button('Draw', variant='primary')
    said = gr.HTML()
    figure = gr.Image(label='Signal and gradient', show_label=False, format='png', interactive=False, buttons=[],
                      alt_text='Above the variance of the signal, below the gradient, by unit')
    check = gr.Markdown()
    variants = [choose(*row) for row in VARIANTS[:2]]
    command = show_command('\n'.join(propagate_command(*variant[1:], IMAGES) for variant in variants))
    button.click(answering(answer_signal, 3), choices, [figure, check, command, said], show_progress_on=[figure],
                 **HEAVY)


def build_compare() -> None:
    choices = []
    with gr.Row():
        for name in 'AB':
            with gr.Column():
                network = choose_network(f'Network {name}', DEMO_MODEL)
                file = gr.File(label=f'or weights for {name}: .safetensors', height=DROP)
                file.upload(lambda: '', outputs=network, **LIGHT)
                choices += [network, file]
    gr.Markdown('With a file, the field Network may say which one it holds; left empty, the file says it.')
    button = gr.Button('Compare', variant='primary')
    said = gr.HTML()
    rows = gr.Dataframe(headers=['class', 'A, %', 'B, %'], label='Accuracy by class', interactive=False, buttons=[])
    images = gr.Gallery(label='Named differently', elem_id='differ', columns=4, height='auto', buttons=[],
                        interactive=False)
    command = show_command(evaluate_command((DEMO_MODEL, None), (DEMO_MODEL, None)))
    button.click(answering(answer_compare, 3), choices, [rows, images, command, said], show_progress_on=[rows], **HEAVY)


def build() -> gr.Blocks:
    """The page; files that it was sent are deleted ten minutes later."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(60, 600), fill_width=False) as page:
        gr.Markdown(INTRO)
        for name, fill in (
                ('Predict', partial(build_predict, page)), ('Signal', build_signal), ('Compare', build_compare)):
            with gr.Tab(name):
                fill()
    return page.queue(max_size=MAX_WAITING, api_open=False)
