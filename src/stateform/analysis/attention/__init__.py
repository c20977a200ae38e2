"""How inputs weigh in outputs: coefficients, collapse, interaction, principles."""
