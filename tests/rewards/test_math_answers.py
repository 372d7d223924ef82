"""Whole responses whose answers need more than a spelling: of each kind, some that are right and some that are not."""

import pytest

from dapo_fast.rewards.math import verify


def boxed(*answers):
    return [(reference, rf"So it is $\boxed{{{given}}}$.") for reference, given in answers]


# kind: (reference, response)
RIGHT = {
    "signs of units": [
        *boxed(("300", "300 K"), ("5", "5 N"), ("5", r"5\,\Omega"), ("12 N", r"12\text{ N}"), ("1.5", "1.5 kWh")),
        *boxed(("3", "3 eV"), ("3", "3 Hz"), ("8.31", r"8.31 \mathrm{~J} \mathrm{~mol}^{-1} \mathrm{~K}^{-1}")),
        *boxed(("9.8", r"9.8\,\text{m}\cdot\text{s}^{-2}"), ("6e-34", r"6 \times 10^{-34} \text{ J}\cdot\text{s}")),
        ("5", "So the force is 5 N."),
        ("300", "So T = 300 K."),
    ],
    "names of units": [
        *boxed(("15", r"15\text{ units squared}"), ("15 cm^2", "15 centimeters squared"), ("15", "15 {cm}")),
        *boxed(("60 mph", "60 miles per hour"), ("15", r"\$15/\text{hour}"), ("15", r"\textdollar 15")),
    ],
    "temperatures": [
        *boxed(("37", "37°C"), ("37°C", r"37^\circ\text{C}"), ("20", r"20\,^\circ\text{C}")),
        ("37", "The temperature is 37 °C."),
    ],
    "Chinese units": boxed(("12点", "12"), ("3", "3分"), ("60", "60千米/时"), ("5千米/时", "5"), ("5万元", "50000元")),
    "currencies": boxed(("1250", "USD 1250"), ("50", "Rs. 50"), ("50", "₹50")),
    "numbers in words": [
        *boxed(("3000000", "3 million"), (r"\$2.5 \text{ million}", "2500000"), ("5e4", "5万"), ("10^6", "1 million")),
        ("5000000", "The answer is 5 million."),
        ("5000000", "They sold 5 million units."),
    ],
    "dates and times": [
        *boxed(("July 4", "July 4th"), ("4:30 PM", "4:30PM")),
        ("July 4", "It is on July 4."),
        ("July 4", "So the date is July 4th."),
    ],
    "signs": boxed(("3:4", "3∶4"), ("[0,1]", r"0\leqq x\leqq 1"), (r"3\mathbf{i}", r"3\hat{\mathbf{i}}")),
    "money": [("16", "He has $20 - $4 = $16 left."), ("16", "So he pays $12 + $4 = $16.")],
    "sentences": [
        ("12", "She has 3 x 4 = <<3*4=12>>12 apples."),
        ("33", "So each gets 100/3 = 33."),
        ("12", "The answer is:\n- 12"),
        ("12", "So he needs at least 12 buses."),
        ("1,2", r"$x = \boxed{1}$ or $x = \boxed{2}$"),
    ],
    "lists in Chinese": boxed(("12和13", "13和12")),
    "sets of numbers": [
        *boxed(("(-4,-2)\\cup(2,4)", "2<|x|<4"), ("2<|x|<4", r"(-4,-2) \cup (2,4)")),
        *boxed((r"(-\infty, 1)\cup(1, 2)\cup(2, \infty)", r"x \neq 1, 2"), (r"x\ne \pm 2", r"x\neq 2, -2")),
        *boxed((r"(-\infty, 1)\cup(1, 2)\cup(2, \infty)", r"x\neq 1 \text{ and } x \neq 2")),
        *boxed((r"-3 \le x \le -1 \text{ or } x = 2", r"[-3, -1] \cup \{2\}"), ("x > 2", "{x | x > 2}")),
        *boxed(("(2,3)", "x>1, x>2, x<3"), (r"(-\infty,0)\cup(0,1)", r"x<1, x\ne 0")),
    ],
    "chains": boxed(
        (r"5\sqrt{2}", r"5\sqrt{2} \approx 7.07"),
        (r"\frac13", r"x = \frac13 \approx 0.33"),
        ("0.33", r"\frac13 \approx 0.33"),
        ("7.07", r"\sqrt{50} = 7.07"),
        ("5", r"\frac{a+b}{2}=\frac{3+7}{2}=5"),
        ("12", r"x+3=15 \Rightarrow x=12"),
    ),
    "remainders": boxed((r"1 \pmod 4", r"x\equiv 1 \pmod 4")),
    "constants": boxed(("x^3+C", "x^3+c"), (r"C-\cos x", r"-\cos x+c")),
    "columns": boxed((r"\langle 3,4 \rangle", r"\begin{pmatrix}3\\4\end{pmatrix}"), (r"\binom34\cdot 0", "0")),
}
WRONG = {
    "signs of units": boxed(("5 N", "5 J"), ("5 V", "5 A"), (r"5\Omega", "5 V"), ("5 kW", "5 W"), ("6", "6xN")),
    "names of units": boxed(
        ("60 mph", "60 km/h"), ("15^\\circ", "15 rad"), ("15 cm^2", "15 cm cubed"), ("6", "6 squared")
    ),
    "temperatures": boxed(("20°C", "20°F"), ("20°C", "20 K")),
    "lists in Chinese": boxed(("12和13", "12"), ("10和11之间", "10,11")),
    "Chinese units": boxed(("12点", "12分"), ("12点", "12小时"), ("5元", "5分")),
    "numbers in words": [
        *boxed(("3", "3 million"), ("3000000", "3 billion"), ("3", "3 hundred"), ("5", "5万"), ("5", "5百")),
        ("5", "The answer is 5 million."),
    ],
    "letters in words": boxed(("6", "6 theta"), ("6", "6 alpha"), ("6", r"6\text{th root}"), ("6", r"6\text{th}")),
    "dates and times": [
        *boxed(("July 4", "June 4"), ("July 4", "July 14th")),
        ("4", "It is on July 4."),
    ],
    "blanks in numbers": boxed(("1000", "1, 000"), ("1000", "100, 0")),
    "parts of a percentage": [("12", "The answer is 12% of 5.")],
    "money": [("4", "He has $20 - $4 = $16 left.")],
    "sentences": [
        ("5", "So 2x = 5."),
        ("5", "So it is 6=5."),
        ("5", "So 2+2 = 5."),
        ("12", "So x is at most 12."),
        ("12", "The answer is half of 12."),
        ("12", "So it is twice 12."),
        ("12", "So it is the square of 12."),
        ("12", "So it is divisible by 12."),
        ("2", r"$x = \boxed{1}$ or $x = \boxed{2}$"),
        ("2", r"$x = \boxed{1}$ and $y = \boxed{2}$"),
    ],
    "sets of numbers": [
        *boxed(("(-4,-2)\\cup(2,4)", "2<|x|<5"), ("(-4,-2)\\cup(2,4)", r"2\le|x|<4"), ("2<|x|<4", "2<x<4")),
        *boxed((r"(-\infty, 1)\cup(1, 2)\cup(2, \infty)", r"x \neq 1, 3"), (r"x\ne\pm 2", r"x\ne 2")),
        *boxed(("x>1", r"x>1 \text{ and } x<5"), (r"(-\infty,-1)\cup(1,\infty)", r"x<-1\text{ and }x>1")),
        *boxed((r"[-3,-1]\cup\{2\}", r"-3\le x\le -1\text{ or }x=3"), ("(1,2)", "x>1 or x<2")),
        *boxed((r"x<1\text{ or }x>3", r"x<1\text{ and }x>3"), (r"x>5\text{ and }x<2", r"x>4\text{ and }x<1")),
        *boxed(("5", r"5\in A"), ("(1,-1)", r"\pm 1")),
    ],
    "lines": boxed(("2", r"x=1\\x=2"), (r"x=1\\y=2", r"x=2\\y=1")),
    "chains": boxed(
        ("5", "6=5"),
        ("5", "2+2=5"),
        ("5", r"\sqrt{16}=5"),
        ("5", r"\frac{12}{2}=5"),
        ("5", "2+3=6=5"),
        ("5", r"6 \approx 7"),
        ("5", r"5 \approx 6"),
        ("25", "x^2+y^2=z^2=25"),
        ("2", r"1 \Rightarrow 2"),
        ("12", r"x=12 \Rightarrow x=13"),
        ("q", r"p \Rightarrow q"),
        (r"P=\frac{2000}{e^{0.0075}} \approx 1985.06", r"P=\frac{2000}{e^{0.0075}} \approx 1985.07"),
        (r"P=\frac{2000}{e^{0.0075}} \approx 1985.06", r"P=\frac{3000}{e^{0.0075}} \approx 1985.06"),
    ),
    "remainders": boxed((r"1 \pmod 4", r"x\equiv 1 \pmod 5"), ("1", r"x\equiv 1 \pmod 4")),
    "constants": boxed(("x^2+C", "x^2-c"), ("x^2+C", "x^3+c"), ("ax+C", "cx+C")),
    "columns": boxed(
        (r"\langle 3,4 \rangle", r"\begin{pmatrix}4\\3\end{pmatrix}"), ("(1,2,3)", r"\begin{pmatrix}1\\2\end{pmatrix}")
    ),
}


def cases(kinds):
    return [pytest.param(*case, id=f"{kind}: {case[0]} ← {case[1]}") for kind in kinds for case in kinds[kind]]


@pytest.mark.parametrize(("reference", "response"), cases(RIGHT))
def test_right(reference, response):
    assert verify(response, reference)


@pytest.mark.parametrize(("reference", "response"), cases(WRONG))
def test_wrong(reference, response):
    assert not verify(response, reference)
