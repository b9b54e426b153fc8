"""Problems with a chain of known length, made and labelled: `python -m data_prep reasoning`.

task.py                            what a task is: tokens, labels, depths
chains.py, jumps.py, written.py    the tasks
request.py, selection.py           what was asked for; which problems each split has
folder.py                          the data folder, made whole and then put in place
"""

from data_prep.reasoning.chains import PermChain, VarsChain
from data_prep.reasoning.jumps import PHop, PointerChase
from data_prep.reasoning.task import Task
from data_prep.reasoning.written import Addition, IgsmLite, VariableAssignment

TASKS: dict[str, type[Task]] = {
    task.name: task for task in (PermChain, VarsChain, PointerChase, PHop, VariableAssignment, IgsmLite, Addition)
}
