"""Off-topic questions that calibrate a guild's relevance floor. Pure.

The topics are very different, so a guild should discuss only a few of them. The high evidence of these few topics
raises the floor only a little; see ``floor.compute_floor``.
"""

from __future__ import annotations

PROBES: tuple[str, ...] = (
    # cooking
    "How long should I rest a leg of lamb before carving it?",
    "Why does my sourdough starter smell of vinegar after two days?",
    "Can I replace buttermilk with yoghurt in scones?",
    "What is the best way to keep basil fresh for a week?",
    "How do I stop a hollandaise from curdling?",
    # gardens and animals
    "When should I prune an old apple tree?",
    "My tomato leaves are turning yellow from the bottom up, is that blight?",
    "How often does a leopard gecko need to eat?",
    "Is it safe to give a puppy carrots to chew on?",
    "Which hedge grows fast and stays green in the shade?",
    # law and money
    "Can my landlord keep the deposit because of small scratches on the floor?",
    "How is inheritance tax worked out when there are three heirs?",
    "What notice do I have to give when I leave a job after two years?",
    "Do I need a notary to sell my grandmother's house?",
    "Should I pay off the mortgage early or put the money into bonds?",
    # health and sport
    "Which stretches help with runner's knee?",
    "How many grams of protein do I need to build muscle at fifty?",
    "What is the offside rule when the ball is played backwards?",
    "How do I stop my backhand from going into the net?",
    "Does a marathon plan of twelve weeks make sense for a beginner?",
    # travel
    "Which month is best for hiking in the Dolomites?",
    "Do I need a visa to change planes in Istanbul?",
    "Is the night train from Vienna to Rome worth the money?",
    "Where can children swim near Lisbon without big waves?",
    "How much do people tip taxi drivers in Argentina?",
    # house and car
    "How do I get candle wax out of a woollen carpet?",
    "Which grout should I use for tiles in a shower?",
    "My radiator is cold at the top and hot at the bottom, what now?",
    "How often must the timing belt of a diesel car be changed?",
    "What paint sticks to old varnished doors without sanding?",
    # history and language
    "Why did the Hanseatic League lose its power?",
    "Who built the aqueduct of Segovia and when?",
    "When do I use the subjunctive in Spanish after aunque?",
    "What is the origin of the word sabotage?",
    "Which treaty ended the Thirty Years' War?",
    # science
    "Why is the sky dark at night if there are so many stars?",
    "How do plants know which way is up?",
    "What makes a magnet lose its strength?",
    "How deep is the water where anglerfish live?",
    "Why do leaves turn red rather than brown in autumn?",
    # music and art
    "Which reed strength suits a beginner on the alto saxophone?",
    "How do I keep watercolours from looking muddy?",
    "What key is the slow movement of the Emperor Concerto in?",
    "How often should violin strings be changed?",
    "Which lens do people like for portraits in dim churches?",
    # family and crafts
    "How do I get a two-year-old to sleep in his own bed?",
    "What can we do at a birthday party for seven girls when it rains?",
    "How many stitches do I cast on for a child's mitten?",
    "Which glue holds leather to cork?",
    "How do I read the grain before planing a board of oak?",
    # games and machines
    "How many cards does each player get in canasta with six people?",
    "Is it better to castle early in the French Defence?",
    "What octane does a two-stroke chainsaw need?",
    "How do I bleed the brakes of an old tandem bicycle?",
    "Which knots hold a hammock between two birches?",
    # writing of programs, and work
    "How do I centre a div in CSS without flexbox?",
    "What does a borrow checker error about two mutable references mean in Rust?",
    "How do I pivot a pandas data frame with two index columns?",
    "What should I wear to an interview at a bank?",
    "How do I tell a colleague that his jokes hurt people?",
)
"""Sixty questions. Tests check a floor with other questions than these."""
