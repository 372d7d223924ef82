"""Kinds of answers that verifiers get wrong: of each, some that are the same and some that are not."""

import pytest

from dapo_fast.rewards.math import verify

# kind: (reference, what the response boxes)
SAME = {
    "ratios": [("1:2", "1/2"), ("3:4", r"\frac{3}{4}"), ("1/2", "1:2"), ("2:3", "4:6"), ("1:10", "1/10")],
    "bounds": [
        ("(1,4)", "x>1, x<4"),
        ("[1,4)", r"x\ge 1, x<4"),
        ("1<x<4", "x<4, x>1"),
        ("x<-1, x>1", r"(-\infty,-1)\cup(1,\infty)"),
        (r"(0,\infty)", r"\mathbb{R}^+"),
        (r"(-\infty,0)", r"\mathbb R^{-}"),
        ("x>0", r"x\in\mathbb{R}^+"),
        (r"[0,\infty)", r"\mathbb{R}_{\ge 0}"),
        ("-2<x<2", "|x|<2"),
        (r"m\leq -1\text{ or }m\geq 2", r"(-\infty,-1]\cup[2,\infty)"),
    ],
    "points": [
        ("(2,3)", "P(2,3)"),
        ("P(2,3)", "(2,3)"),
        ("(1,2),(3,4)", "A(1,2), B(3,4)"),
        ("(0,-1,2)", "Q(0,-1,2)"),
    ],
    "binomials": [
        (r"\binom{5}{2}", r"{5 \choose 2}"),
        (r"{n \choose 2}", r"\binom n2"),
        ("10", r"5\choose 2"),
        ("120", r"\tbinom{10}{3}"),
        (r"\frac{n(n-1)}{2}", r"\dbinom{n}{2}"),
    ],
    "degrees": [
        (r"\frac12", r"\cos 60^\circ"),
        (r"\tan 45^\circ", "1"),
        ("-1", r"\cos(180^\circ)"),
        (r"\frac{\sqrt{3}}{2}", r"\sin{60°}"),
        (r"\cos 40^\circ", r"\sin 50^\circ"),
        (r"\frac14", r"\sin^2 30^\circ"),
    ],
    "vectors": [
        (r"2\mathbf i+3\mathbf j", r"2\vec i+3\vec j"),
        (r"\hat{i}+\hat{j}", r"\mathbf{i}+\mathbf{j}"),
        (r"\frac{\vec{a}}{2}+\vec{b}", r"\frac{\mathbf{a}}{2}+\mathbf{b}"),
        (r"\overrightarrow{AB}", r"\vec{AB}"),
    ],
    "choices": [("AC", "A,C"), ("A,C", "AC"), ("ABD", "A, B and D"), ("BC", "(C), (B)"), ("BD", r"\text{(B),(D)}")],
    "digits that go on": [
        (r"\frac13", r"0.333\ldots"),
        ("0.333...", "1/3"),
        ("1/6", "0.1666…"),
        (r"\frac{4}{33}", r"0.1212\cdots"),
        (r"\frac{1}{7}", r"0.142857142857\dots"),
        (r"\frac{1}{7}", r"0.\dot{1}4285\dot{7}"),
        (r"\frac{1}{3}", "0.(3)"),
        (r"\sqrt{2}", r"1.41421356\ldots"),
        (r"\sqrt{10}", r"3.1622\ldots"),
        (r"\frac{1}{11}", r"0.\overline{09}"),
    ],
    "remainders": [
        (r"2\pmod 5", r"2 \pmod{5}"),
        (r"2\pmod{5}", r"2 \bmod 5"),
        (r"x \equiv 3 \pmod{7}", r"x\equiv 3 \mod 7"),
    ],
    "percent": [("1.5", r"150\%"), ("0.08", r"8\%"), ("1", r"100\%"), ("25\\%", "25 percent")],
    "units": [
        ("10\\text{ m/s}^2", r"10\ \mathrm{m/s^2}"),
        (r"9.8 \mathrm{~m} / \mathrm{s}^{2}", "9.8 meters per square second"),
        (r"20\text{ cm}^2", "20 square centimeters"),
        (r"12\text{ cm}", r"12\text{ units}"),
        ("15 sq units", r"15\text{ units}^2"),
        ("5 hours", "5 hrs"),
        ("3 p.m.", "3 PM"),
        ("5 apples", "5 red apples"),
        ("5 pairs", "5"),
    ],
    "mixed numbers": [("7/2", "3 1/2"), ("-7/2", r"-3\frac{1}{2}"), ("4 3/8", r"\frac{35}{8}")],
    "powers of ten": [(r"3\times10^{-5}", "3e-5"), (r"1.60 \times 10^{-19}", "1.6e-19"), ("1e3", "1000")],
    "several": [
        (r"\frac{-3\pm\sqrt{5}}{2}", r"\frac{-3+\sqrt5}{2},\frac{-3-\sqrt5}{2}"),
        ("0, 1, -1", r"x=0, \pm 1"),
        ("(x, y, z) = (1,2,3)", "x=1, y=2, z=3"),
    ],
    "relations": [
        ("2^3=8", "8=2^3"),
        (r"\cos(10\pi/3)=-1/2", r"\cos\left(\frac{10\pi}{3}\right)=-0.5"),
        ("3x-2y+1=0", r"y=\frac{3x+1}{2}"),
        (r"\frac{dy}{dx}=2x", r"2x=\frac{dy}{dx}"),
        ("3.14", r"\approx 3.14"),
    ],
    "braces": [("{\\frac{1}{2}}", "1/2"), ("1/2", r"{\frac{1}{2}}")],
    "options": [
        (r"\text{(A)}\ 5", "(A)"),
        (r"\text{(A)}\ 5", "A"),
        (r"\text{(A)}\ 5", "5"),
        (r"\textbf{(D)}\ 12", r"\text{(D) }12"),
        ("A", r"\text{Option A}"),
    ],
    "degrees by a raised letter": [
        ("60", r"60^{\text{o}}"),
        (r"60^\circ", r"60^\text{o}"),
        (r"60^{\text{o}}", "60"),
        ("60^{o}", "60°"),
    ],
    "bases in words": [("101_2", r"101_{\text{two}}"), ("44_5", r"44_{\text{five}}"), ("1A_{16}", "1a_{16}")],
    "typesetting": [
        ("5", r"\color{red}{5}"),
        ("5", r"\textcolor{blue}{5}"),
        ("5", r"\large 5"),
        ("3", r"\phantom{0}3"),
        ("1/2", r"{1 \over 2}"),
        (r"1.2 \times 10^{-4}", "1.2*10^-4"),
        (r"\ln 2", r"\log_e 2"),
        (r"\cos x", "cos x"),
        ("5", '"5"'),
        ("5", r"\boxed{5}"),
    ],
    "Chinese": [
        ("1,2", "1、2"),
        ("1或2", "x=1或x=2"),
        ("8千米", "8"),
        ("6", "6 个苹果"),
        ("20 cm²", "20平方厘米"),
    ],
    "more units": [("5", r"5\text{ N}"), ("15", "15¢"), ("3:2", "3 to 2")],
    "holes": [
        (r"x>0\text{ and }x\neq1", r"(0,1)\cup(1,\infty)"),
        (r"\{x\mid x\in\mathbb{R},x\neq2\}", r"(-\infty,2)\cup(2,\infty)"),
    ],
    "remainders in text": [(r"x\equiv 3 \pmod 7", r"x \equiv 3\ (\text{mod } 7)")],
    "times and money": [("3:30 PM", r"3{:}30\text{ pm}"), (r"\$3 million", r"3\text{ million dollars}")],
    "columns": [(r"\begin{pmatrix}1\\2\end{pmatrix}", r"\left(\begin{array}{c}1\\2\end{array}\right)")],
    "inverse functions": [(r"\tan^{-1}(1)", r"\frac\pi4")],
    "roots": [(r"\sqrt[4]{x^3}", "x^{3/4}"), ("(-1)^{n+1}", "(-1)^{n-1}")],
    "dangling": [("5", "5\\\\"), ("5", r"5.\ ")],
}
DIFFERENT = {
    "ratios": [("1:2", "2:1"), ("1:2", "1/3"), ("2:1", "2"), ("1:2:3", "1/2"), ("10:30", "1/3"), ("6:20", "3:10")],
    "bounds": [
        ("(1,4)", "x>1, x<5"),
        ("(1,4)", "x>1, y<4"),
        ("(1,4)", "x<1, x>4"),
        ("(-1,1)", "x<-1, x>1"),
        (r"(0,\infty)", r"\mathbb{R}"),
        (r"[0,\infty)", r"\mathbb{R}^+"),
        (r"(0,\infty)", r"\mathbb{R}^-"),
        (r"\mathbb{R}", r"\mathbb{R}^2"),
    ],
    "points": [
        ("(2,3)", "P(3,2)"),
        ("(2,3)", "P(2,3,4)"),
        ("(2,3)", "f(2,3)"),
        ("6", "P(2,3)"),
        ("A(1,2), B(3,4)", "A(3,4), B(1,2)"),
    ],
    "binomials": [
        (r"\binom{5}{2}", r"\binom{5}{1}"),
        (r"\binom{5}{2}", r"\frac{5}{2}"),
        ("5", r"{5 \choose 2}"),
    ],
    "degrees": [
        (r"\frac12", r"\cos 60"),
        (r"\frac12", r"\cos 30^\circ"),
        (r"\sin 30^\circ", "30"),
        (r"\cos 60^\circ", r"\cos 61^\circ"),
    ],
    "vectors": [
        (r"2\mathbf i+3\mathbf j", r"2\vec j+3\vec i"),
        (r"\mathbf{i}+\mathbf{j}", r"\vec{i}-\vec{j}"),
        (r"\frac{k}{r^2}", r"\frac{k\vec{r}}{r^3}"),
        ("5", r"\vec{a}"),
    ],
    "choices": [("AC", "A,B"), ("AC", "A"), ("AC", "A,C,D"), ("A", "A,C"), ("A,C", "AB"), ("AB", "A+B")],
    "digits that go on": [
        (r"\frac13", "0.333"),
        (r"\frac13", r"0.334\ldots"),
        (r"\frac13", r"0.343434\ldots"),
        ("0.3", r"0.333\ldots"),
        ("333", r"333\ldots"),
        (r"1,2,\ldots", r"1,3,\ldots"),
        (r"0.\overline{09}", "0.09"),
    ],
    "remainders": [(r"2\pmod 5", r"3\pmod 5"), (r"2\pmod 5", r"2\pmod 6"), (r"2\pmod 5", "2"), ("2", r"2\pmod 5")],
    "percent": [("10", r"1000\%"), ("5", r"500\%"), ("2", r"200\%"), ("0.5", "5%")],
    "units": [
        ("10 m/s", r"10\text{ m/s^2}"),
        (r"10\text{ m/s}", r"10\text{ m/s}^2"),
        (r"5\text{ apples}", "5 pairs"),
        ("5 dollars", "5 cents"),
        (r"5\text{ meters}", r"5 \text{ feet}"),
        ("5 hours", "5 minutes"),
        ("90 degrees", "90 radians"),
        ("12 square units", "12 cubic units"),
        (r"6\text{ ft}^2", r"6\text{ ft}"),
        ("5 miles per hour", "5 miles per minute"),
    ],
    "factorials": [("12", "12!"), ("12", "12!."), ("x", "x!"), ("3", "3!!")],
    "mixed numbers": [("7/2", "3 1/3"), ("31/2", "3 1/2"), (r"3\frac12", r"3 \cdot \frac12"), ("1/2", "2 1/2")],
    "powers of ten": [("0", "1e-30"), ("1/100!", "1/101!"), ("2^{-64}", "2^{-63}"), ("1.6e-19", "1.7e-19")],
    "several": [("3", "1 and 3"), ("2, 5", "2, 5, 7"), ("1", "x=1, y=1"), ("4", r"x = 3 \text{ or } 4")],
    "relations": [
        (r"\cos(10\pi/3)=-1/2", r"\cos(20\pi/3)=-1/2"),
        (r"\cos(-13\pi/2)=0", r"\cos(-23\pi/2)=0"),
        ("i^{117}=(i^4)^{29} i=i", "i^{217}=(i^4)^{29} i=i"),
        (r"\lambda_1=2", r"\lambda_2=2"),
        ("5", r"\alpha+\beta=5"),
        ("5", r"2\lambda=5"),
        (r"1/(2\cos^2 x)=\frac12\sec^2 x+C", r"1/(2\cos^2 x)=\frac12\sec^2 x-C"),
        ("2", r"\sqrt{x}=2"),
        ("180", "A+B+C=180"),
        ("u_{tt}=c^2u_{xx}", "u_{tt}=-c^2u_{xx}"),
        (r"\vec r=(1,2)+t(3,4)", r"\vec r=(1,2)+t(3,5)"),
    ],
    "unread": [
        (r"\underbrace{111}_{3}", r"\underbrace{111}_{4}"),
        (r"\mathcal{L}(3)", r"\mathcal{L}(4)"),
        (r"A\cap B", r"A\cup B"),
        (r"a\mid b", r"b\mid a"),
        ("2,4,6,...", "2,4,8,..."),
    ],
    "options": [
        (r"\text{(A)}\ 5", "(B)"),
        (r"\text{(A)}\ 5", "(A) 6"),
        (r"\text{(A)}\ 5", "6"),
        ("A", "(A) or (B)"),
        ("A", r"\text{(A)}, \text{(B)}"),
    ],
    "degrees by a raised letter": [("60", "60^{0}"), ("60", "60^{o}x"), (r"60^{\text{o}}", "6"), ("60", "60^{oz}")],
    "bases in words": [("101_2", r"101_{\text{three}}"), ("1A_{16}", "1b_{16}")],
    "typesetting": [("5", r"\color{5}{6}"), ("1/2", r"{2 \over 1}"), ("2", "2 cos x"), ("12", "1、2")],
    "Chinese": [("5米", "5厘米"), ("5元", "5角"), ("5天", "5小时"), ("2", "1或2"), ("3", "3千")],
    "more units": [(r"30^\circ", "30 radians"), ("3", "3 to 2")],
    "holes": [
        (r"x>0\text{ and }x\neq1", r"(0,\infty)"),
        (r"x>0\text{ and }x\neq1", r"(0,2)\cup(2,\infty)"),
        (r"(0,1)\cup(1,\infty)", r"x>0\text{ and }x\neq-1"),
    ],
    "remainders in text": [(r"x\equiv 3 \pmod 7", r"x \equiv 3\ (\text{mod } 8)")],
    "times and money": [("3:30 PM", r"3{:}30\text{ am}"), (r"\$5", "5 cents")],
    "inverse functions": [(r"\tan^{-1}x", r"\frac{1}{\tan x}"), (r"\sin^{-1}x", r"\tan^{-1}x")],
    "roots": [(r"\sqrt[4]{x^3}", "x^{4/3}"), ("(-1)^{n+1}", "(-1)^n"), (r"\sqrt{x}", r"\sqrt{-x}")],
    "Chinese bounds": [("5", "5以上"), ("5", "大于5")],
}
# kind: (reference, response)
RIGHT = {
    "tags": [
        ("5", "thus <answer>5</answer>"),
        ("5", "x\n<answer>\n5\n</answer></s>"),
        ("Evelyn", "<think>of 7</think><answer> Evelyn </answer>"),
        (r"\frac12", r"<answer>\boxed{\frac{1}{2}}</answer>"),
        ("1, 2", "<answer>x=1 or x=2</answer>"),
    ],
    "factorials": [("12!", "The answer is 12!."), ("12!", "So it is 12!."), ("12", "So there are 12!")],
    "digits that go on": [(r"\frac13", "The answer is 0.333..."), ("5", "The answer is 5...")],
    "remainders": [(r"2 \pmod{5}", "The answer is 2 (mod 5)."), (r"2\pmod{5}", "So.\n2 mod 5")],
    "several": [
        ("BD", "The correct options are B and D."),
        ("1, 2", "The answers are 1 and 2."),
        ("(1,4)", "So $x>1$, $x<4$."),
        ("(2,3)", "The point is P(2,3)."),
    ],
    "ratios": [("1:2", "So the ratio is 1/2.")],
    "asides": [("12", "The answer is 12 (since 5+7=12)."), ("15", "The answer is 15 because 3*5=15.")],
    "roots and pi": [
        (r"\sqrt{2}", "The length is √2."),
        ("√2", "So x = √2."),
        (r"2\pi", "The area is 2π."),
        (r"\frac{\sqrt{3}}{2}", "So it is √3/2"),
    ],
    "ends of sentences": [
        (r"60^{\text{o}}", "The angle is 60°."),
        ("18", "She makes $18 a day."),
        ("1/2", "So it's 1/2."),
        ("no", "No."),
        ("no", "The answer is No, since 3 > 2."),
        ("5", "The answer is __5__."),
        ("5", "The answer is\n\\begin{align*} x &= 2+3 \\\\ &= 5 \\end{align*}"),
    ],
    "choices": [("A", "故选A"), ("A", "故选：A．"), (r"\text{(A)}\ 5", "The answer is (A).")],
    "plain relations": [
        ("y=2x+1", "The equation is y = 2x + 1."),
        ("x>3", "Therefore x > 3."),
        ("(-1,3)", "So -1 < x < 3."),
        ("15", "He needs 5 x 3 = 15"),
    ],
    "times and ratios": [("3:30 PM", "He arrives at 3:30 PM."), ("2:3", "The ratio is 2 to 3.")],
    "money": [("12.50", r"It costs \$12.50 in total.")],
    "letters": [("B", "**(B)**"), ("B", "So option B is correct."), ("B", "Therefore, B is the correct answer.")],
    "Chinese sentences": [("12", "答：一共有12个苹果。"), ("C", "【答案】C")],
}
WRONG = {
    "tags": [("5", "<answer>6</answer>"), ("5", "The answer is 5. <answer>6</answer>")],
    "factorials": [("12", "The answer is 12!."), ("12", "So it is 12!.")],
    "digits that go on": [("0.3", "The answer is 0.333...")],
    "remainders": [("2", "The answer is 2 (mod 5)."), ("5", "So it is 2 mod 5.")],
    "bounds": [
        ("12", "The answer is more than 12."),
        ("12", "The answer is not $12$."),
        ("12", "The answer is at most $12$."),
        ("5", "So x >= 5."),
        ("5", "So |x| = 5."),
    ],
    "relations": [("5", "So a^2 + b^2 = 5."), ("2", "So the length is √2.")],
    "several": [("13", "The answer is 12 and 13."), ("3", "So x = 2 or x = 3.")],
    "percent": [("10", "The answer is 1000%.")],
    "roots and pi": [("2", "The area is 2π."), (r"\sqrt{2}", "So it is 1+√2."), (r"\sqrt{2}", "So a+b = √2.")],
    "ends of sentences": [
        ("5", "It cannot be 5."),
        ("5", "So it isn't 5."),
        ("5", "So x ≠ 5."),
        ("5", "So 1,5"),
        ("5", "x=4或x=5"),
        ("2", "So ±2"),
    ],
    "choices": [("A", "故选B"), (r"\text{(A)}\ 5", "The answer is (B).")],
    "plain relations": [("1", "The equation is y = 2x + 1."), ("5", "So n = 5k."), ("5", "So n < 5.")],
    "times and ratios": [("3", "The ratio is 2 to 3."), ("30", "He arrives at 3:30 PM."), ("6", "So 5 to 6.")],
    "letters": [("A", "A is wrong."), ("A", "A and B"), ("B", "So option B is not correct.")],
    "Chinese sentences": [("5", "所以x大于5。"), ("5", "答：5或6个。"), ("5", "答：15个。")],
    "parts": [
        ("7", "So 5 out of 7."),
        ("6", "There are 6! ways."),
        ("5", "So 3·5"),
        ("5", "The answer is 5 more than x."),
    ],
}


def cases(kinds):
    return [pytest.param(*case, id=f"{kind}: {case[0]} ← {case[1]}") for kind in kinds for case in kinds[kind]]


@pytest.mark.parametrize(("reference", "given"), cases(SAME))
def test_same(reference, given):
    assert verify(f"So it is $\\boxed{{{given}}}$.", reference)


@pytest.mark.parametrize(("reference", "given"), cases(DIFFERENT))
def test_different(reference, given):
    assert not verify(f"So it is $\\boxed{{{given}}}$.", reference)


@pytest.mark.parametrize(("reference", "response"), cases(RIGHT))
def test_right_response(reference, response):
    assert verify(response, reference)


@pytest.mark.parametrize(("reference", "response"), cases(WRONG))
def test_wrong_response(reference, response):
    assert not verify(response, reference)
