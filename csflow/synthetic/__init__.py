"""Draw images: the demo lines, and synthetic defects pasted on good images."""

from csflow.synthetic.demo import DEMO_LINES as DEMO_LINES
from csflow.synthetic.demo import DemoLine as DemoLine
from csflow.synthetic.demo import draw_demo as draw_demo
from csflow.synthetic.paste import PASTED as PASTED
from csflow.synthetic.paste import paste_defects as paste_defects
