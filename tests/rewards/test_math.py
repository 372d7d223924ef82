"""Maths rewards: what counts as the same answer, where it is found, and that no response breaks the verifier."""

import multiprocessing
import threading

import pytest

from dapo_fast.data.problems import Problem
from dapo_fast.errors import InputError
from dapo_fast.rewards import algebra, named_reward, verifier_for, verify_many
from dapo_fast.rewards.extract import boxed_run, extract_answer, last_boxed
from dapo_fast.rewards.math import verify

# (reference, what the response boxes)
SAME = [
    ("5", "x=5"),
    ("x=5", "5"),
    ("\\frac{1}{2}", "0.5"),
    ("0.5", "\\dfrac12"),
    ("\\frac{1}{2}", "1/2"),
    ("50%", "50\\%"),
    ("50", "50\\%"),
    ("50\\%", "0.5"),
    ("1,000", "1000"),
    ("1000", "1,000"),
    ("10{,}000", "10000"),
    ("90^\\circ", "90"),
    ("90", "90^{\\circ}"),
    ("90", "90\\text{ degrees}"),
    ("\\text{Evelyn}", "Evelyn"),
    ("Evelyn", "\\text{Evelyn}"),
    ("(3,\\infty)", "(3, \\infty)"),
    ("[0,1)", "\\left[0, 1\\right)"),
    ("(-\\infty,2)\\cup(3,\\infty)", "(-\\infty, 2) \\cup (3, \\infty)"),
    ("1,2", "2, 1"),
    ("\\{1,2\\}", "1, 2"),
    ("1,-2", "x=1 \\text{ or } x=-2"),
    ("1 \\pm \\sqrt{2}", "1+\\sqrt{2}, 1-\\sqrt{2}"),
    ("\\pm 2", "2,-2"),
    ("(1,2)", "(1, 2)"),
    ("(1,2)", "\\left(1,2\\right)"),
    ("\\begin{pmatrix} 1 \\\\ -2 \\end{pmatrix}", "\\begin{pmatrix}1\\\\-2\\end{pmatrix}"),
    (
        "\\begin{pmatrix} 1/2 & 0 \\\\ 0 & 1 \\end{pmatrix}",
        "\\begin{bmatrix} \\frac{1}{2} & 0 \\\\ 0 & 1 \\end{bmatrix}",
    ),
    ("\\$18.90", "18.90"),
    ("18.90", "\\$18.9"),
    ("5", "5 \\text{ cm}"),
    ("5 \\text{ cm}^2", "5"),
    ("5", "5\\,\\mathrm{m/s}"),
    ("12\\sqrt{3}", "12 \\sqrt3"),
    ("\\frac{\\sqrt{3}}{2}", "\\sqrt{3}/2"),
    ("2\\sqrt{2}", "\\sqrt{8}"),
    ("x^2+2x+1", "(x+1)^2"),
    ("y=2x+3", "y = 3+2x"),
    ("2x+3", "y=2x+3"),
    ("\\text{(B)}", "B"),
    ("\\text{(B)}", "(B)"),
    ("B", "\\text{B}"),
    ("1\\frac{3}{4}", "\\frac{7}{4}"),
    ("\\frac{7}{4}", "1\\frac34"),
    ("1.75", "1\\frac{3}{4}"),
    ("1011_2", "1011_{2}"),
    ("2516_8", "2516_8"),
    ("2516_8", "2516"),
    ("14\\pi", "14 \\pi"),
    ("6+9i", "9i+6"),
    ("\\text{even}", "even"),
    ("-\\frac{2}{3}", "\\frac{-2}{3}"),
    ("-\\frac{2}{3}", "-2/3"),
    ("3.14", "3.140"),
    ("10^{10}", "10000000000"),
    ("4.5e33", "4.5 \\times 10^{33}"),
    ("4.5\\times 10^{33}", "4.5e33"),
    ("2^{1009}", "2^{1009}"),
    ("10:30 \\text{ a.m.}", "10\\!:\\!30\\text{ a.m.}"),
    ("x>3", "3 < x"),
    ("x \\in [1,2]", "[1,2]"),
    ("[1,2]", "x \\in [1,2]"),
    ("2,3,4", "2,3,\\text{ and }4"),
    ("(1,8,19), (2,7,13), (4,5,7)", "(4,5,7),(2,7,13),(1,8,19)"),
    ("a=2, a=-6-4 \\sqrt{2}", "2, -6-4\\sqrt{2}"),
    ("f(x)=x,f(x)=-x", "f(x)=x \\text{ and } f(x)=-x"),
    ("\\frac{1}{6} \\pi, \\frac{5}{6} \\pi", "\\frac{\\pi}{6}, \\frac{5\\pi}{6}"),
    ("\\frac{x+1}{2}", "\\frac{1}{2}x+\\frac{1}{2}"),
    ("\\frac{\\pi}{4}", "0.7854"),
    ("\\frac{1}{3}", "0.33333"),
    ("\\sqrt{5}", "2.2361"),
    ("$10-4 n$", "-4n+10"),
    ("$(45,2),(-10,-9)$", "(-10,-9), (45,2)"),
    ("\\text{odd}", "\\text{Odd}"),
    ("(-1,6)", "(-1, 6)"),
    ("864 \\mbox{ inches}^2", "864"),
    ("5.5", "\\frac{11}{2}"),
    ("\\tan^2 x", "\\tan^2 x"),
    ("\\text{June 20}", "June 20"),
    ("0", "0"),
    ("-1", "−1"),
    ("70 \\sqrt{2}", "70\\sqrt{2}\\text{ cm}"),
    ("36^\\circ", "36^\\circ"),
    ("\\emptyset", "\\varnothing"),
    ("x=2,y=3", "y=3, x=2"),
    ("(2,3)", "x=2, y=3"),
    ("3/4", "0.75"),
    ("75", "75\\text{ miles per hour}"),
    ("12", "12 \\text{ ways}"),
    ("1", "1.0"),
    ("y= \\pm \\frac{\\sqrt{2 x+c}}{1+x^{2}}", "\\pm \\frac{\\sqrt{c+2x}}{1+x^2}"),
    ("\\left\\{\\frac{1}{2},3\\right\\}", "\\{3, 0.5\\}"),
    ("(0,\\frac{5}{2})", "(0,2.5)"),
    ("k(x-1)", "kx-k"),
    ("\\text{Yes}", "yes"),
    ("Saturday and Sunday", "Sunday and Saturday"),
    ("\\frac{1}{2}", "\\frac 12"),
    ("0.1", "\\frac{1}{10}"),
    (".5", "0.5"),
    ("33\\frac{1}{3}\\%", "\\frac{100}{3}\\%"),
    ("33\\frac{1}{3}", "33.3333"),
    ("\\sin x+c", "c+\\sin(x)"),
    ("1:2", "1:2"),
    ("3x-4y=5", "3x - 4y - 5 = 0"),
    ("2,500", "\\$2,500"),
    ("2.5 \\text{ million}", "2.5\\text{ million}"),
    ("125 \\text{ ft}^2", "125 \\text{ square feet}"),
    ("6 - 5i", "6-5i"),
    ("\\text{Wednesday}", "Wednesday."),
    ("11,\\! 111,\\! 111,\\! 100", "11111111100"),
    ("5,\\!000", "5000"),
    ("\\frac{9}{7}", "\\cfrac{9}{7}"),
    ("8\\%", "0.08"),
    ("-3, 0", "x=0, x=-3"),
    ("3\\sqrt{13}", "3\\sqrt{13}"),
    ("(5,\\infty)", "x>5"),
    ("x \\le 4", "(-\\infty, 4]"),
    ("[-2,7]", "-2 \\le x \\le 7"),
    ("-2 \\le x \\le 7", "[-2,7]"),
    # mixed numbers, scientific notation, roots in round brackets
    ("5/2", "2 1/2"),
    ("\\frac{5}{2}", "2\\tfrac12"),
    ("-2.5", "-2 1/2"),
    ("2 1/4", "\\frac{9}{4}"),
    ("10^{-6}", "1e-6"),
    ("10^{-6}", "0.000001"),
    ("2.5\\times 10^{-3}", "2.5E-3"),
    ("1000000", "1e6"),
    ("4\\sqrt{2}", "4\\sqrt(2)"),
    ("4\\sqrt{2}", "4√2"),
    ("3\\sqrt{x+1}", "3 sqrt(x+1)"),
    ("10 000", "10000"),
    ("10000", "10\\,000"),
    # intervals, inequalities, set-builders
    ("(2,5)", "2 < x < 5"),
    ("2 < x < 5", "(2,5)"),
    ("2 < x < 5", "5 > x > 2"),
    ("(2,5)", "x > 2 \\text{ and } x < 5"),
    ("(-\\infty,-1)\\cup(1,\\infty)", "x<-1 or x>1"),
    ("(-∞,-1)∪(1,∞)", "x<-1 \\text{ or } x>1"),
    ("x<-1 or x>1", "(1,\\infty)\\cup(-\\infty,-1)"),
    ("(2,\\infty)", "\\{x|x>2\\}"),
    ("(2,\\infty)", "\\left\\{x \\in \\mathbb{R} \\mid x>2\\right\\}"),
    ("\\{x | -2 \\le x < 1\\}", "[-2, 1)"),
    ("\\{x|-2≤x<1\\}", "\\{x|-2\\leq x<1\\}"),
    ("(-\\infty,3)\\cup(3,\\infty)", "x \\ne 3"),
    ("(-\\infty,\\infty)", "\\mathbb{R}"),
    ("[0,\\frac{1}{2})", "0 \\le t < 0.5"),
    # relations
    ("x^2+4x+20=0", "2x^2+8x+40=0"),
    ("y=2x+3", "2x-y+3=0"),
    ("x+2y \\le 4", "-x-2y \\ge -4"),
    ("n \\equiv 1 \\pmod{4}", "n≡1 (mod 4)"),
    ("y''+2y'-3y=0", "2y'+y''=3y"),
    ("xy=1", "y=\\frac{1}{x}"),
    # chains, lists, units, remarks
    ("i^6=i^4 \\cdot i^2=1 \\cdot(-1)=-1", "-1"),
    ("D(x)=x^2+(2x+1)^2=5x^2+4x+1", "5x^2+4x+1"),
    ("f'(x)=2x", "2x"),
    ("5", "AB = 5"),
    ("1,2", "$x=1$ or $x=2$"),
    ("x=1 or x=2", "1, 2"),
    ("30", "\\angle ABC = 30^\\circ"),
    ("12", "12 red apples"),
    ("60", "60 miles per hour"),
    ("7", "\\text{7 people}"),
    ("1:2:3", "1 : 2 : 3"),
    ("A+a", "a+A"),
    ("1/2^{99}", "2^{-99}"),
    ("2^{10}", "1024"),
    ("671.02", "671.0203"),
    ("\\hbar \\omega(v+1 / 2)", "\\hbar\\omega\\left(v+\\frac12\\right)"),
    ("-1./3", "-\\frac{1}{3}"),
    ("\\frac{1}{3}", "0.\\overline{3}"),
    ("\\frac{37}{30}", "1.2\\overline{3}"),
    ("5 sec", "5"),
    ("3", "3 times as many"),
    ("\\langle 1,2\\rangle", "(1,2)"),
    ("\\begin{pmatrix} 1/2 \\\\ 1 \\end{pmatrix}", "\\frac{1}{2}\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"),
    ("\\{0\\}\\cup[2,\\infty)", "[2,\\infty) \\cup \\{0\\}"),
    ("\\lfloor n/2 \\rfloor", "\\left\\lfloor\\frac{n}{2}\\right\\rfloor"),
    ("5 ft 6 in", "5 ft 6 in"),
    ("X=5", "x=5"),
    ("(3,-1)", "(x,y)=(3,-1)"),
    ("\\text{All real numbers}", "(-\\infty,\\infty)"),
    ("\\frac{x^{2}}{4}+\\frac{y^{2}}{9}=1", "9x^2+4y^2=36"),
    ("2\\mathbf{i}+3\\mathbf{j}", "3\\mathbf{j}+2\\mathbf{i}"),
    ("\\frac{1}{2}\\ln|x|+C", "\\ln\\sqrt{|x|}+C"),
    ("x=7", "x=3+4=7"),
    ("x=7", "3+4=7"),
    ("\\log _{2}(32)=5", "\\log_2 32 = 5"),
    ("$y_1=x$\n$y_2=x^2$", "y_1=x, y_2=x^2"),
    ("3630 ft^2", "3630\\text{ ft}^2"),
    # characters for what they stand for
    ("x^2+4x+20=0", "x²+4x+20=0"),
    ("2³", "8"),
    ("a²b", "a^2b"),
    ("\\frac{1}{2}", "½"),
    ("2½", "\\frac{5}{2}"),
    ("x_1", "x₁"),
    ("(1,2)", "（1，2）"),
    # one sign, one relation, one set
    ("(3,\\infty)", "\\left\\{x \\,\\middle|\\, x>3\\right\\}"),
    ("2,3", "x=2 \\lor x=3"),
    ("1,2", "x=1 \\quad x=2"),
    ("n\\equiv 1\\pmod 4", "n \\equiv 1 \\mod 4"),
    ("n \\equiv 1 \\pmod{4}", "n \\equiv 1 (\\bmod 4)"),
    ("I=3t", "I(t)=3t"),
    ("y=3x+1", "f(x)=3x+1"),
    ("\\varnothing", "\\{\\}"),
    ("25", "25 \\frac{\\text{m}}{\\text{s}}"),
    ("6", "sum = 6"),
    ("3", "3 quarters"),
    ("\\vec a \\times \\vec b", "\\vec{a} × \\vec{b}"),
    ("3 × 4", "12"),
    ("x_1=1,x_2=2", "2,1"),
    ("x=1,y=2", "1,2"),
    # products by brackets, sizes, open ends by brackets, sets without points
    ("6", "(2)(3)"),
    ("6", "2(3)"),
    ("12", "(3)4"),
    ("(1,4)", "]1,4["),
    ("[1,4)", "\\left[1,4\\right["),
    ("(-\\infty,1]\\cup(3,4)", "]-\\infty,1]\\cup]3,4["),
    ("(-3,3)", "|x|<3"),
    ("|x|\\ge 3", "(-\\infty,-3]\\cup[3,\\infty)"),
    ("(-\\infty,2)\\cup(5,\\infty)", "\\{x|x<2\\}\\cup\\{x|x>5\\}"),
    ("x \\ne 2", "\\mathbb{R}\\setminus\\{2\\}"),
    ("(-\\infty,-1)\\cup(-1,2)\\cup(2,\\infty)", "\\mathbb{R}-\\{2,-1\\}"),
    # names that only say what is asked for
    ("x_1=2,x_2=3", "x=2 \\text{ or } x=3"),
    ("x=2, x=3", "x_{1}=3, x_{2}=2"),
    ("0.3", "P(X=1)=0.3"),
    ("5", "|AB|=5"),
    ("5", "|\\vec{a}|=5"),
    ("x=1,y=2", "\\begin{cases}x=1\\\\y=2\\end{cases}"),
    ("x=1,y=2", "\\left\\{\\begin{array}{l}x=1\\\\y=2\\end{array}\\right."),
    ("\\frac{\\pi}{4}+k\\pi,k\\in\\mathbb{Z}", "k\\pi+\\frac{\\pi}{4} (k\\in\\mathbb{Z})"),
    ("(1,2,3)", "\\left<1,2,3\\right>"),
    ("8\\pi", "8\\pi\\text{ cm}"),
    ("\\pi r^2 h", "V=\\pi r^2h"),
    ("12", "12个"),
    ("12 \\text{ cm}", "12厘米"),
    # nothing, said in words
    ("\\emptyset", "\\text{no solution}"),
    ("\\text{No solution}", "no real solutions"),
    ("\\text{none}", "\\text{There are no solutions}"),
    ("\\text{does not exist}", "DNE"),
    ("ABD", "A, B, D"),
]
DIFFERENT = [
    ("5", "6"),
    ("(0,1)", "[0,1]"),
    ("(0,1)", "(0,1]"),
    ("1,2", "1,3"),
    ("1,2", "1"),
    ("(1,2)", "(2,1)"),
    ("10000", "10001"),
    ("\\text{east}", "\\text{seat}"),
    ("5", "5x"),
    ("5", "-5"),
    ("0.5", "0.6"),
    ("50", "500"),
    ("x>3", "x<3"),
    ("x>3", "x\\ge 3"),
    ("\\text{(B)}", "C"),
    ("1011_2", "1011_3"),
    ("\\frac{1}{2}", "2"),
    ("\\sqrt{2}", "2"),
    ("x=5", "y=5"),
    ("12", "1,2"),
    ("2", "\\pm 2"),
    ("\\pm 2", "2"),
    ("Evelyn", "Angela"),
    ("5", "5 \\text{ million}"),
    ("0.33", "\\frac{1}{3}"),
    ("(1,2)", "(1,2,3)"),
    ("\\begin{pmatrix} 1 \\\\ -2 \\end{pmatrix}", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"),
    ("14\\pi", "14"),
    ("2^{1009}", "2^{1008}"),
    ("\\text{no}", "yes"),
    ("x^2+1", "x^2+2"),
    ("3", "3!"),
    ("i", "1"),
    ("e", "c"),
    ("50", "0.5"),
    ("1", "1 \\text{ or } 2"),
    ("7", ""),
    # what cannot be read is compared as text, never by its numbers
    ("4", "4\\sqrt(2)"),
    ("\\{x|-2≤x<1\\}", "\\{x|-3≤x<1\\}"),
    ("n≡1 (mod 4)", "3"),
    ("n≡1 (mod 4)", "1"),
    ("n \\equiv 1 \\pmod 4", "n \\equiv 3 \\pmod 4"),
    ("n≡1 (mod 4)", "n=1"),
    ("1:2:3", "1:3:2"),
    ("10和11之间", "10和12之间"),
    (
        "\\hbar \\omega(v+1 / 2)-\\frac{E_{0}^{2} e^{2}}{2 m \\omega^{2}}",
        "\\hbar \\omega(v+1 / 2)-\\frac{E_{0}^{2} e^{2}}{2 m \\omega^{3}}",
    ),
    ("\\hbar \\omega(v+1 / 2)", "\\hbar \\omega(v-1 / 2)"),
    ("\\oint_C f = 3", "\\oint_C f = 4"),
    ("3", "\\oint 3"),
    ("1,2,\\ldots,9", "1,2,\\ldots,8"),
    ("A+a", "2a"),
    ("y'", "y"),
    ("3", "3!!"),
    ("E-6", "1e-6"),
    # tolerance is relative, and only between a decimal and what is written otherwise
    ("1/2^{99}", "1/2^{98}"),
    ("1/2004!", "1/2006!"),
    ("10^{-12}", "2 \\times 10^{-12}"),
    ("0", "10^{-9}"),
    ("2^{1009}", "2^{1009}+1"),
    ("671.02", "671.03"),
    ("4.4677", "4.4678"),
    ("2.50x", "2.51x"),
    ("10000", "10000.5"),
    ("10000.5", "10001"),
    # relations compare as relations
    ("x²+4x+20=0", "x²-12x+39=0"),
    ("x^2+4x+20=0", "x^2-12x+39=0"),
    ("\\log_4(8)=3/2", "\\log_4(8)=1"),
    ("I=3t", "I=4t"),
    ("y''+2y'-3y=0", "y''-2y'-3y=0"),
    ("\\frac{dy}{dx}=2y", "\\frac{dy}{dx}=-2y"),
    ("\\vec{v}=2\\vec{i}+\\vec{j}", "\\vec{v}=2\\vec{i}-\\vec{j}"),
    ("x+2y \\le 4", "x+2y \\ge 4"),
    ("x+2y \\le 4", "x+2y < 4"),
    ("x+2y \\le 4", "x+2y=4"),
    ("x^2=4", "x=2"),
    ("2 < x < 5", "2 < x < 6"),
    ("2 < x < 5", "2 \\le x < 5"),
    ("x<-1 or x>1", "x<-1 or x>2"),
    ("x<-1 or x>1", "-1<x<1"),
    # an equation does not stand for its right side, unless it is a name, a calculation or a chain
    ("5", "a²+b²=5"),
    ("5", "a^2+b^2=5"),
    ("0", "3x-4y=0"),
    ("\\frac{1}{2}", "\\sin x=\\frac{1}{2}"),
    ("4", "x+y=4"),
    # a number and anything that is no plain word
    ("1", "n - 1"),
    ("6", "6 pi"),
    ("6", "6xy"),
    ("3", "3ab^2"),
    ("2", "2 sin x"),
    ("5", "at least 5"),
    ("5", "5 or more"),
    ("2", "2 dozen"),
    ("5", "5 choose 2"),
    ("4", "minus 4"),
    ("3", "3 and x"),
    # blanks between digits
    ("21/4", "2 1/4"),
    ("12", "1 \\quad 2"),
    ("12", "1 2"),
    ("\\frac{21}{4}", "2 \\frac{1}{4}"),
    ("123", "12 3"),
    # one of several
    ("2", "$x=1$ or $x=2$"),
    ("2", "x=1 or x=2"),
    ("2", "1, 2"),
    ("2", "x=1, y=2"),
    ("0", "0.\\overline{3}"),
    ("\\frac{11}{3}", "2\\frac{5}{3}"),
    ("5 ft 6 in", "6 ft 5 in"),
    ("\\lfloor n/2 \\rfloor", "\\lfloor n/3 \\rfloor"),
    ("\\langle 1,2\\rangle", "\\langle 2,1\\rangle"),
    ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\frac{1}{2}\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"),
    ("\\{x \\in \\mathbb{Z} | x>2\\}", "x>2"),
    ("|x|", "x"),
    ("\\frac{1}{3^{50}}", "\\frac{1}{3^{51}}"),
    ("e^{-100}", "e^{-101}"),
    ("m\\ddot{x}=-kx", "m\\dot{x}=-kx"),
    ("2:3", "3:2"),
    ("甲3", "乙3"),
    ("5", "x>5"),
    ("20", "20(3+4)"),
    ("4", "y - 4"),
    ("25", "2\\;5"),
    ("1000000", "1000001.0"),
    # every side of a chain, every letter of prose
    ("\\log _{2}(32)=5", "\\log _{3}(32)=5"),
    ("\\log _{2}(\\frac{1}{2})=-1", "x=-1"),
    ("i^{5}=i^{4} \\cdot i=1 \\cdot i=i", "i^{6}=i^{4} \\cdot i=1 \\cdot i=i"),
    ("\\cos(207) \\approx -0.891", "\\cos(307) \\approx -0.891"),
    ("P(X=0)=P(X=2)=1/4, P(X=1)=1/2", "P(X=1)=P(X=2)=1/4, P(X=1)=1/2"),
    ("It takes $\\frac{5}{2} \\approx 2.5$ minutes.", "It takes $\\frac{7}{2} \\approx 2.5$ minutes."),
    ("$y_1=1-x$\n$y_2=4x$", "$y_1=1+x$\n$y_2=4x$"),
    ("11.6\\text{ in}^2", "11.6\\text{ in}^3"),
    # products of letters are no names
    ("1", "xy=1"),
    ("6", "xyz=6"),
    ("2", "x=1 \\quad x=2"),
    ("2", "2 thirds"),
    ("3", "3 tenths"),
    ("3", "3 hundredths"),
    ("6", "2³"),
    ("2", "½"),
    ("p \\land q", "p \\lor q"),
    ("f(x)=x^2", "g(x)=x^2"),
    ("P(A)=1/2", "P(B)=1/2"),
    ("n \\equiv 1 \\pmod 4", "n \\equiv 1 \\pmod 5"),
    ("25", "25 \\frac{\\text{m}}{3}"),
    # names keep the order; of vectors there are two products
    ("x=1,y=2", "2,1"),
    ("2,1", "x=1, y=2"),
    ("\\vec a \\cdot \\vec b", "\\vec a \\times \\vec b"),
    ("\\nabla \\cdot F=0", "\\nabla \\times F=0"),
    ("\\mathbf{F}=q\\mathbf{v}\\times\\mathbf{B}", "\\mathbf{F}=q\\mathbf{v}\\cdot\\mathbf{B}"),
    # products by brackets are no sums
    ("5", "(2)(3)"),
    ("5", "2(3)"),
    ("7", "(3)4"),
    ("12", "12!!"),
    # ends of intervals, sizes, nothing
    ("[1,4]", "]1,4["),
    ("[1,4)", "]1,4]"),
    ("(-3,3)", "|x|\\le 3"),
    ("(-3,3)", "|x|>3"),
    ("x \\ne 2", "\\mathbb{R}\\setminus\\{3\\}"),
    ("(-\\infty,2)\\cup(5,\\infty)", "\\{x|x<2\\}\\cup\\{x|x>6\\}"),
    ("\\emptyset", "0"),
    ("\\text{no solution}", "\\text{one solution}"),
    ("5", "|x|=5"),
    ("x_1=2,x_2=3", "x=2,x=4"),
    ("x_1=2,x_2=3", "y=2,y=3"),
    ("x_1=2,x_2=3", "x_2=2,x_2=3"),
    ("a_1=2,a_2=3", "a_1=3,a_2=2"),
    # units that differ, letters that are no units
    ("22.1cm^{2}", "22.1cm^{3}"),
    ("5cm²", "5cm³"),
    ("3:00 pm", "3:00 am"),
    ("3 \\text{ p.m.}", "3 \\text{ a.m.}"),
    ("\\pi r^2 h", "\\pi r^2"),
    ("\\begin{vmatrix}1&2\\\\3&4\\end{vmatrix}", "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}"),
    ("ABD", "A,B,C"),
    ("5", "5万"),
    ("e^{\\pi\\sqrt{163}}", "640320^3+744"),
]
# (reference, response)
RIGHT = [
    ("18", "...\n#### 18"),
    ("1000", "x\n#### 1,000"),
    ("18", "#### $18.00"),
    ("18", "The answer is 18."),
    ("18", "So, the answer is $18$ dollars."),
    ("18", "The answer is 18 dollars for 3 days."),
    ("\\frac{1}{2}", "The final answer is $\\frac{1}{2}$. I hope it is correct."),
    ("18", "She makes 9*2 = $18 every day."),
    ("3.5", "**Answer:** 3.5"),
    ("3.5", "Answer: 3.5 meters per second."),
    ("7", "Therefore\n\\[\nx = 3+4 = 7\n\\]"),
    ("7", "Thus $x=7$."),
    ("7", "thus the result is 7"),
    ("\\frac{3}{4}", "Thus we get $\\frac{3}{4}$."),
    ("12", "**12**"),
    ("x+1", "The answer is $x+1$."),
    ("5", "The answer is:\n\\boxed{5}"),
    ("5", "The answer is:\n\n5"),
    ("Evelyn", "The answer is Evelyn."),
    ("2", "\\boxed{1}... no wait \\boxed{2}"),
    ("1,2", "The roots are $\\boxed{1}$ and $\\boxed{2}$."),
    ("5", "\\boxed 5"),
    ("10", "\\boxed{\\text{10 apples}}"),
    ("18", "the answer is \\$18."),
    ("(1,2)", "The answer is (1,2)."),
    ("7", "A: 3+4=7\nThe answer is 7</s>"),
    ("72", "Natalia sold 48/2 = <<48/2=24>>24 clips.\n#### 72"),
    ("40", "The answer is 40%."),
    ("B", "The answer is (B)."),
    ("B", "Answer: B"),
    ("\\text{(C)}", "The correct answer is \\textbf{(C)}."),
    ("5", "the answer is $x = 5$"),
    ("5", "The answer is $2+3=5$."),
    ("6", "So there are 6."),
    ("-3", "The answer is -3"),
    ("0.5", "the answer is 1/2"),
    ("10:30", "The answer is 10:30."),
    ("10", "Final Answer: The final answer is $10$. I hope it is correct."),
    ("20", "The answer is 20 $\\text{cm}^2$."),
    ("20", "So the area is 20 $\\text{cm}^2$."),
    ("20", "So it is $20$ $\\text{cm}^2$."),
    ("20", "So it is 20 $cm^2$."),
    ("90", "The answer is 90$^\\circ$."),
    ("90", "Hence it is 90$^\\circ$."),
    ("25", "The answer is 25$\\%$."),
    ("25\\%", "Thus it is 25$\\%$."),
    ("12", "The answer is 12, which is even."),
    ("9", "The answer is 9, since 4+5=9."),
    ("\\frac{5}{2}", "So it is 2 1/2."),
    ("2", "We get $x+1=3$, so $x=2$."),
    ("1, 3", "Thus the solutions are $1$ and $3$."),
    ("12", "The answer is $12$, which is even."),
    ("12", "The answer is 12 (5 + 7)."),
    ("12", "The answer is 12 (a dozen)."),
    ("1, 2", "The answer is $x=1$ or $x=2$."),
    ("1, 2", "Hence $x=1$ or $x=2$."),
    ("x=-6 or x=6", "So $x=-6$ or $x=6$."),
    ("$x=-6$ or $x=6$", "So we are done.\n\n$x=-6$ or $x=6$"),
    ("$i^{5}=i^{4} \\cdot i=1 \\cdot i=i$", "The answer is $i^{5}=i^{4} \\cdot i=1 \\cdot i=i$."),
    ("The length is $\\frac{117}{2} \\approx 58.5$.", "The answer is The length is $\\frac{117}{2} \\approx 58.5$."),
    ("5000 pens for a cost of $\\$ 200$.", "So.\n5000 pens for a cost of $\\$ 200$."),
    ("$a=1$\n$b=2$", "So.\n#### $a=1$\n$b=2$"),
    ("12", "#### 12 (5 + 7)"),
    ("12", "#### 12, which is even"),
    ("12", "The answer is 12 (=5+7)."),
    ("12", "So there are 12 (5 + 7)."),
    ("1, 2", "So x=1 or x=2."),
    ("1, 2", "The solutions are 1 and 2."),
    ("1000, 2", "They are 1,000 and 2."),
    ("(1,2)", "Thus the point is (1, 2)."),
    ("(-\\infty,-1)\\cup(1,\\infty)", "So $x<-1$ or $x>1$."),
    ("A", "The correct option is A."),
    ("A", "Therefore, the correct choice is **A**."),
    ("5", "答案是5。"),
    ("2, 3", "So $x_1=2$, $x_2=3$."),
    ("2:3", "Thus the ratio is 2:3."),
    ("2", "Since $x>0$, $x=2$."),
    ("[0,1]", "So the range is [0, 1]."),
    ("B", "So the answer is option B."),
    ("B", "Therefore the correct choice is choice (B)."),
    ("12", "所以答案是12个。"),
    ("12", "So he needs at least 12 buses."),
    ("7", "Therefore\n\\[\n\\begin{aligned} x &= 3+4 \\\\ &= 7 \\end{aligned}\n\\]"),
]
WRONG = [
    ("18", "18 is the start but the result is 17"),
    ("5", ""),
    ("5", "no number here"),
    ("5", "\\boxed{}"),
    ("1", "\\boxed{1}, hence \\boxed{2}"),
    ("18", "#### 19\n"),
    ("5", "5 then the answer is 6."),
    ("18", "####"),
    ("2", "The answer is $x=1$ or $x=2$."),
    ("2", "Hence $x=1$ or $x=2$."),
    ("2", "Hence x=1 or x=2."),
    ("1", "Hence there are n - 1."),
    ("6", "The answer is 6 pi."),
    ("6", "The answer is 6xy."),
    ("2", "The answer is 2 (3 + 4)."),
    ("2", "The answer is 2 sin x."),
    ("5", "The answer is 5 or more."),
    ("5", "The answer is $5$ or $6$."),
    ("5", "The answer is $a^2+b^2=5$."),
    ("cm^2", "The answer is 20 $\\text{cm}^2$."),
    ("10", "#### 10 or 11"),
    ("2", "#### 2 (3 + 4)"),
    ("2", "The solutions are 1 and 2."),
    ("2", "Thus the point is (1, 2)."),
    ("7", "There are 8 apples (1 red, 7 green)."),
    ("(-1,1)", "So $x<-1$ or $x>1$."),
    ("5", "答案是6。"),
    ("3", "So $x_1=2$, $x_2=3$."),
    ("3", "Thus the ratio is 2:3."),
    ("12", "The answer is at least 12."),
    ("12", "The answer is not 12."),
    ("5", "The answer is log 5."),
    ("5", "So it is sqrt 5."),
    ("1", "So the range is [0, 1]."),
]


@pytest.mark.parametrize(("reference", "given"), SAME)
def test_same_answer(reference, given):
    assert verify(f"So it is $\\boxed{{{given}}}$.", reference)


@pytest.mark.parametrize(("reference", "given"), DIFFERENT)
def test_different_answer(reference, given):
    assert not verify(f"So it is $\\boxed{{{given}}}$.", reference)


@pytest.mark.parametrize(("reference", "response"), RIGHT)
def test_answer_found_in_response(reference, response):
    assert verify(response, reference), extract_answer(response)


@pytest.mark.parametrize(("reference", "response"), WRONG)
def test_no_answer_or_a_wrong_one(reference, response):
    assert not verify(response, reference), extract_answer(response)


def test_last_box():
    assert last_boxed(r"\boxed{1} then \boxed{\frac{1}{2}}") == r"\frac{1}{2}"
    assert last_boxed(r"\boxed{\{1, 2\}}") == r"\{1, 2\}"
    assert last_boxed(r"\boxed{1} then \boxed{2") == "1"  # the last one was cut off
    assert last_boxed("none") is None
    assert boxed_run(r"$\boxed{1}$ and $\boxed{2}$") == ["1", "2"]
    assert boxed_run(r"\boxed{1} is wrong, so \boxed{2}") is None


def test_several_boxes_are_no_way_to_hedge():
    assert not verify(r"$\boxed{1}$ or $\boxed{2}$", "1")
    assert not verify(r"$\boxed{1}$ or $\boxed{2}$", "2")
    assert verify("$\\boxed{2}$\n\n$\\boxed{2.0}$", "2")
    assert not verify(r"The answer is $\boxed{2", "2")  # it was cut off, and may have gone on
    assert verify(r"$\boxed{1}$ or $\boxed{2}$", "1, 2")


HOSTILE = {
    "unclosed boxes": "\\boxed{" * 100_000,
    "a megabyte of braces": "{" * 1_000_000,
    "dollars": "$" * 300_000,
    "parentheses": "\\(" * 200_000,
    "hashes": "####" * 100_000,
    "phrases": "answer is " * 100_000,
    "null bytes": "\0" * 1_000_000,
    "surrogates": "\ud800\udfff \\boxed{\ud800}",
    "deep parentheses": "\\boxed{" + "(" * 15_000 + "}",
    "deep fractions": "\\boxed{" + "\\frac{" * 300 + "1" + "}{2}" * 300 + "}",
    "a tower of powers": r"\boxed{10^{10^{10^{10}}}}",
    "a huge power": r"\boxed{9999999^{9999999999}}",
    "factorials": r"\boxed{1000!!!!!}",
    "a hard integral": r"\boxed{\int_0^\infty \frac{\sin(x^7)e^{-x^{11}}}{1+x^{13}} dx}",
    "a long sum": r"\boxed{\sum_{n=1}^{10^{12}} \sin(n)}",
    "many elements": "\\boxed{" + "1," * 900 + "}",
    "division by zero": r"\boxed{\frac{1}{0}}",
    "nothing": "",
    "blanks": " " * 1_000_000,
    "one long line": "12 " * 400_000,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_no_response_raises_or_passes(kind):
    for reference in ("5", r"x^2+\sqrt{2}"):
        assert verify(HOSTILE[kind], reference) is False


def test_algebra_survives_a_killed_worker():
    assert verify(r"\boxed{(x+1)^2}", "x^2+2x+1")
    worker = algebra._pool.idle.get_nowait()
    worker.process.kill()
    algebra._pool.idle.put(worker)
    verdicts = [verify(r"\boxed{(x+1)^2}", "x^2+2x+1") for _ in range(2)]
    assert verdicts[-1]


def test_threads():
    verdicts = {}

    def work(number):
        verdicts[number] = verify(rf"\boxed{{(x+{number})^2}}", f"x^2+{2 * number}x+{number**2}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == dict.fromkeys(range(2, 10), True)


def _in_process(number):
    return verify(rf"\boxed{{(x+{number})^2}}", f"x^2+{2 * number}x+{number**2}")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes(method):
    assert _in_process(2)  # so that a fork inherits a live worker, which it must not use
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(_in_process, [2, 3, 4, 5]) == [True] * 4


def test_many_and_by_kind():
    problems = [Problem("1", "?", "5"), Problem("2", "?", "1/2")]
    responses = ["The answer is 5.", "\\boxed{0.5}"]
    assert verify_many(list(zip(problems, responses))) == [1, 1]
    assert verify_many(list(zip(problems, ["6", "7"]))) == [0, 0]
    assert verify_many([]) == []
    with pytest.raises(ValueError, match="no verifier"):
        verifier_for("chess")


def test_rewards_of_ones_own_are_fractions_and_means():
    problem = Problem("7", "?", "5")
    judged = named_reward({"math": 0.8, "short": 0.2}, {"short": lambda problem, response: 1 / len(response)})
    assert verify_many([(problem, "5"), (problem, "55"), (problem, "6")], judged) == [1, pytest.approx(0.1), 0.2]
    every = named_reward({"a": 0.1, "b": 0.2, "c": 0.7}, dict.fromkeys("abc", lambda problem, response: True))
    assert every(problem, "") == 1  # exactly, whatever the weights
    for wrong in (2, -0.1, "1", None, float("nan"), [1]):
        with pytest.raises(InputError, match=r"gave .* for problem '7'; a reward is a number from 0 to 1"):
            verify_many([(problem, "5")], lambda problem, response, found=wrong: found)


def test_a_file_that_a_reward_misses_is_the_rewards():
    def looks_it_up(problem, response):
        return float(open("/no/such/table.json").read())

    words = "looks_it_up: failed on problem '7': /no/such/table.json: No such file or directory"
    with pytest.raises(InputError, match=words):
        verify_many([(Problem("7", "?", "1"), "1")], looks_it_up)
