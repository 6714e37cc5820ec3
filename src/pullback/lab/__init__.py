"""Running a system: `Lab`, claims, results, scales, distribution, gallery."""
