"""What a study has measured and concluded, as it is written to a folder and read from it: `results.json` and the tables
beside it. Makers of results make these types; everything that shows results reads them and nothing else.
"""

from aligngap.results._values import name_of as name_of
from aligngap.results._values import number as number
from aligngap.results._values import plain as plain
from aligngap.results._values import shortened as shortened
from aligngap.results.files import content as content
from aligngap.results.files import for_readers as for_readers
from aligngap.results.files import read as read
from aligngap.results.files import read_per_prompt as read_per_prompt
from aligngap.results.files import write as write
from aligngap.results.schema import BLOCKED as BLOCKED
from aligngap.results.schema import FAILED as FAILED
from aligngap.results.schema import FAMILIES as FAMILIES
from aligngap.results.schema import FINISHED as FINISHED
from aligngap.results.schema import PENDING as PENDING
from aligngap.results.schema import SCHEMA as SCHEMA
from aligngap.results.schema import UNFINISHED as UNFINISHED
from aligngap.results.schema import VERDICTS as VERDICTS
from aligngap.results.schema import ArmRecord as ArmRecord
from aligngap.results.schema import Conclusion as Conclusion
from aligngap.results.schema import Cost as Cost
from aligngap.results.schema import EstimateRecord as EstimateRecord
from aligngap.results.schema import Figure as Figure
from aligngap.results.schema import FigurePoint as FigurePoint
from aligngap.results.schema import Inputs as Inputs
from aligngap.results.schema import MeasureRecord as MeasureRecord
from aligngap.results.schema import Power as Power
from aligngap.results.schema import Revision as Revision
from aligngap.results.schema import StageTiming as StageTiming
from aligngap.results.schema import StudyResults as StudyResults
from aligngap.results.schema import Task as Task
from aligngap.results.schema import Timings as Timings
from aligngap.results.schema import Verdict as Verdict
from aligngap.results.tables import COMPARISONS as COMPARISONS
from aligngap.results.tables import JUDGES as JUDGES
from aligngap.results.tables import MEASURES as MEASURES
from aligngap.results.tables import OPPONENTS as OPPONENTS
from aligngap.results.tables import POINTS as POINTS
from aligngap.results.tables import SAMPLES as SAMPLES
from aligngap.results.tables import SETTINGS as SETTINGS
from aligngap.results.tables import SPLITS as SPLITS
from aligngap.results.tables import golden_kl as golden_kl
from aligngap.results.tables import measure_columns as measure_columns
