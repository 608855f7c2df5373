"""Collect the tables of an experiment."""

from samsvae.study.script import job

with job(snakemake):
    from samsvae.evaluation.bound import collect_bounds
    from samsvae.evaluation.collect import collect_histories, collect_scores
    from samsvae.evaluation.masks import collect_masks
    from samsvae.evaluation.worth import collect_worth
    from samsvae.study.cost import collect_cost
    from samsvae.tables import PRECISE, read, write

    grid = read(snakemake.input.grid)
    found = snakemake.input
    baselines = [*found.baselines, *found.pathway_baselines]
    write(collect_scores(grid, found.scores, found.pathways, baselines), snakemake.output.scores)
    write(collect_masks(grid, found.perturbations, found.screens), snakemake.output.masks)
    write(collect_bounds(grid, found.bound), snakemake.output.bound)
    worth, conditions = collect_worth(
        grid, found.worth, found.worth_conditions, found.baseline_worth, found.baseline_conditions
    )
    write(worth, snakemake.output.worth, digits=PRECISE)
    write(conditions, snakemake.output.worth_conditions, digits=PRECISE)
    write(collect_histories(grid, found.histories), snakemake.output.histories)
    write(collect_cost(grid, found.records, snakemake.params.benchmarks), snakemake.output.cost)
