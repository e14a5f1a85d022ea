import time
def test_it(slurm, tmp_path):
    print(slurm.run("sinfo"))
    print(slurm.run("srun", "-N2", "env"))
    print(slurm.run("srun", "-p", "gpu", "env"))
