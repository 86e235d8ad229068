"""What the tests on the pretend accelerator try, for the test and for its child."""
from xtokd.objectives import OBJECTIVES, objective

TOP_K = {"strict": {"top_k": 12, "support": "teacher"}, "gkd": {"top_k": 12, "support": "teacher"}, "uld": {"top_k": 12},
         "cover": {"teacher_top_k": 12, "max_unknown": 1.}, "alm": {"debias": "none", "gamma": None}, "sampled": {}, "dpca": {}}
# those that train with nothing but a student, a teacher and prompts
TRAINS_ALONE = [name for name in OBJECTIVES if not OBJECTIVES[name].cls.equal_vocabularies
                and not {"gold", "preferences", "weak_logp", "plus_logp", "minus_logp"} & set(objective(name).requires)]
