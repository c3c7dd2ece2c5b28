"""The run's settings and what came of it, as a table."""

from lorasmith.reports.html import render_fragment
from lorasmith.runs.run_folder import RunFolder

_TEMPLATE = """
{% from "macros.html.j2" import facts_table %}
<section><h2>The run</h2>
{{ facts_table(facts) }}
<details class="card"><summary>All settings (run.toml)</summary><pre>{{ settings }}</pre></details>
</section>
"""


def settings_section(run: RunFolder) -> str:
    """Return a table of facts, and the text of ``run.toml``."""
    return render_fragment(_TEMPLATE, facts=_facts(run), settings=run.settings_toml)


def _facts(run: RunFolder) -> list[tuple[str, str]]:
    config, summary = run.config, run.summary
    targets = config.lora.targets
    facts = [
        ("trigger word (tag)", config.data.tag),
        ("rank", str(config.lora.rank)),
        ("targets", targets if isinstance(targets, str) else ", ".join(targets)),
        ("steps planned", str(config.train.steps)),
    ]
    if summary is None:
        return [*facts, ("state", "not finished")]
    facts += [
        ("steps done", str(summary.steps)),
        ("effective batch size", str(summary.effective_batch_size or "")),
        ("ended", summary.stop_reason),
        ("model", f"{summary.model} ({summary.family})" if summary.model else summary.family),
        ("LoRA file", summary.file),
        ("SHA-256 of its weights", summary.sha256),
    ]
    if summary.best_step is not None:
        facts.append(("lowest validation loss", f"step {summary.best_step}"))
    return [(name, value) for name, value in facts if value]
