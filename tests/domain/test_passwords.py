"""What a password may be."""

import pytest

from broadcast_server.domain import passwords
from broadcast_server.domain.errors import Invalid

PERSONAL = ("nguyen.lan", "Nguyễn Thị Lan", "Xã Yên Thành", "Tỉnh Nghệ An")

GUESSED = [
    "Matkhau@2026!!",
    "matkhau123456",
    "MẬT KHẨU 123456",
    "P@ssw0rd1234",
    "password2025!",
    "Admin@123456",
    "truyenthanh2026",
    "TruyềnThanhXã2026",
    "Yên Thành 2025",
    "yenthanh@12345",
    "nguyen.lan.2026",
    "NguyenThiLan1985",
    "Nghean@2026abc",
    "qwertyuiop123",
    "asdfghjkl12345",
    "abcdefghijklmnop",
    "123456789012345",
    "987654321098",
    "aaaaaaaaaaaa",
    "abababababab",
    "lanlanlanlan",
    "xyzxyzxyzxyz",
    "qazwsxedcrfv",
    "iloveyou2024!!",
]
GOOD = [
    "nồi cơm bò kho 47",
    "correct horse battery",
    "chuồn chuồn ớt kê 9",
    "Xe đạp phở ghế 12",
    "k7Qz-19vX-mmPe",
    "bảy con cá trê ngủ trưa",
]


@pytest.mark.parametrize("guess", GUESSED)
def test_what_strangers_try_first_is_refused(guess: str):
    with pytest.raises(Invalid, match="password_common") as refused:
        passwords.check(guess, PERSONAL)
    assert refused.value.facts["field"] == "new_password"
    assert refused.value.facts["fix"] == "take_three_words"


@pytest.mark.parametrize("good", GOOD)
def test_a_few_unrelated_words_are_a_good_password(good: str):
    passwords.check(good, PERSONAL)


def test_eleven_letters_are_too_short_and_two_hundred_and_one_too_long():
    with pytest.raises(Invalid, match="password_too_short"):
        passwords.check("cá trê ngủ!")
    passwords.check("cá trê ngủ!?")
    with pytest.raises(Invalid, match="password_too_long"):
        passwords.check("cá trê ngủ trưa " * 13)


def test_the_word_is_the_same_however_the_keyboard_composes_it():
    assert passwords.normal("ca\u0301 tre\u0302") == passwords.normal("cá trê")
