"""Test every condition of the data for differential expression."""

from samsvae.study.script import job

with job(snakemake):
    from samsvae.evaluation.metrics.de import differential_expression
    from samsvae.screens.screen import read_screen, text_of
    from samsvae.tables import write

    screen = read_screen(snakemake.input[0])
    condition = text_of(screen.obs["condition"]).to_numpy()
    tests = differential_expression(screen.X, condition, screen.var_names, control=screen.uns["control"])
    write(tests, snakemake.output[0])
