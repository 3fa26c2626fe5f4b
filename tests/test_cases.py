"Faults that outside use found, each with the right value; what a fix is a sample of is tested beside its source"
