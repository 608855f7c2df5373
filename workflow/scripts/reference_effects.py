"""Compute the effects in the data and score the baselines."""

from samsvae.study.script import job

with job(snakemake):
    from samsvae.data.arrays import read_screen, read_split
    from samsvae.evaluation.any_truth import truth_or_reason
    from samsvae.evaluation.baselines import baseline_tables
    from samsvae.evaluation.data_effects import effects
    from samsvae.evaluation.split_scores import split_tables
    from samsvae.evaluation.truth_file import write_truth
    from samsvae.matrices import write_h5ad
    from samsvae.screens.screen import reference_of
    from samsvae.tables import PRECISE, write

    screen = read_screen(snakemake.input.arrays)
    split = read_split(snakemake.input.split, screen.cells)
    data = effects(screen, split, reference=reference_of(snakemake.input.screen))
    scores, per_condition = baseline_tables(screen, split, data)
    write_h5ad(data, snakemake.output.effects)
    write(scores.assign(rules=snakemake.params.rules), snakemake.output.scores)
    write(per_condition, snakemake.output.per_condition)
    truth = truth_or_reason(screen, split)
    write_truth(truth, snakemake.output.truth)
    worth, conditions = split_tables(screen, split, truth)
    write(worth.assign(rules=snakemake.params.rules), snakemake.output.worth, digits=PRECISE)
    write(conditions, snakemake.output.worth_conditions, digits=PRECISE)
