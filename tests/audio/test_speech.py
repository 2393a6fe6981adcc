"""A typed notice is read as a person would read it, by any of three voices."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from broadcast_server.audio.formats import SAMPLE_RATE_HZ, dbfs, pcm_of, to_float
from broadcast_server.audio.speech import EspeakSpeaker, Voice, normalise, read_decimal, read_digits, read_number
from broadcast_server.domain.errors import Invalid, Unavailable

NUMBERS = {
    0: "không",
    4: "bốn",
    5: "năm",
    10: "mười",
    11: "mười một",
    14: "mười bốn",
    15: "mười lăm",
    20: "hai mươi",
    21: "hai mươi mốt",
    24: "hai mươi bốn",
    25: "hai mươi lăm",
    31: "ba mươi mốt",
    55: "năm mươi lăm",
    99: "chín mươi chín",
    100: "một trăm",
    101: "một trăm linh một",
    105: "một trăm linh năm",
    110: "một trăm mười",
    111: "một trăm mười một",
    115: "một trăm mười lăm",
    121: "một trăm hai mươi mốt",
    999: "chín trăm chín mươi chín",
    1_000: "một nghìn",
    1_005: "một nghìn không trăm linh năm",
    1_050: "một nghìn không trăm năm mươi",
    1_100: "một nghìn một trăm",
    2_026: "hai nghìn không trăm hai mươi sáu",
    10_000: "mười nghìn",
    15_015: "mười lăm nghìn không trăm mười lăm",
    100_001: "một trăm nghìn không trăm linh một",
    1_000_000: "một triệu",
    1_000_005: "một triệu không trăm linh năm",
    1_005_000: "một triệu không trăm linh năm nghìn",
    21_000_000: "hai mươi mốt triệu",
    1_000_000_000: "một tỷ",
    2_500_000_000: "hai tỷ năm trăm triệu",
    1_000_000_000_000: "một nghìn tỷ",
}

TEXTS = [
    # decimals, per cent, thousands
    ("mực nước 3,5 m", "mực nước ba phẩy năm mét"),
    ("dài 2,05 km", "dài hai phẩy không năm ki lô mét"),
    ("3,25%", "ba phẩy hai mươi lăm phần trăm"),
    ("tăng 12,345 %", "tăng mười hai phẩy ba bốn năm phần trăm"),
    ("1.234.567 người", "một triệu hai trăm ba mươi bốn nghìn năm trăm sáu mươi bảy người"),
    ("1.234,5 ha", "một nghìn hai trăm ba mươi bốn phẩy năm héc ta"),
    ("phiên bản 1.5", "phiên bản một phẩy năm"),
    ("100% hộ dân", "một trăm phần trăm hộ dân"),
    ("1/2 số hộ", "một phần hai số hộ"),
    ("phòng 007", "phòng không không bảy"),
    # dates
    ("ngày 05/3", "ngày năm tháng ba"),
    ("họp 05/03/2026", "họp ngày năm tháng ba năm hai nghìn không trăm hai mươi sáu"),
    ("ngày 15-4-2026", "ngày mười lăm tháng tư năm hai nghìn không trăm hai mươi sáu"),
    ("ngày 01.9.2026", "ngày một tháng chín năm hai nghìn không trăm hai mươi sáu"),
    ("lễ 30/4 và 1/5", "lễ ngày ba mươi tháng tư và ngày một tháng năm"),
    ("kỷ niệm 2/9", "kỷ niệm ngày hai tháng chín"),
    ("trước 30/6", "trước ngày ba mươi tháng sáu"),
    ("từ ngày 1-5/4", "từ ngày một đến năm tháng tư"),
    ("tháng 3/2026", "tháng ba năm hai nghìn không trăm hai mươi sáu"),
    ("tháng 4", "tháng tư"),
    ("thứ 4", "thứ tư"),
    ("sáng thứ 5", "sáng thứ năm"),
    ("giai đoạn 2021-2025", "giai đoạn hai nghìn không trăm hai mươi mốt đến hai nghìn không trăm hai mươi lăm"),
    # times
    ("17h30", "mười bảy giờ ba mươi phút"),
    ("17:30", "mười bảy giờ ba mươi phút"),
    ("17 giờ", "mười bảy giờ"),
    ("17 giờ 30", "mười bảy giờ ba mươi phút"),
    ("7 giờ 5 phút", "bảy giờ năm phút"),
    ("lúc 5h", "lúc năm giờ"),
    ("5h00", "năm giờ"),
    ("7g15", "bảy giờ mười lăm phút"),
    ("từ 7h30 đến 11h", "từ bảy giờ ba mươi phút đến mười một giờ"),
    ("7h30-11h", "bảy giờ ba mươi phút đến mười một giờ"),
    ("7h30 - 11h00", "bảy giờ ba mươi phút đến mười một giờ"),
    ("23:59:59", "hai mươi ba giờ năm mươi chín phút năm mươi chín giây"),
    ("trực 24/24h", "trực hai mươi bốn trên hai mươi bốn giờ"),
    ("17h30 ngày 30/4", "mười bảy giờ ba mươi phút ngày ba mươi tháng tư"),
    # measures and money
    ("5 km", "năm ki lô mét"),
    ("5km", "năm ki lô mét"),
    ("120 mm", "một trăm hai mươi mi li mét"),
    ("50-70 mm", "năm mươi đến bảy mươi mi li mét"),
    ("10 kg", "mười ki lô gam"),
    ("2 ha", "hai héc ta"),
    ("60 km/h", "sáu mươi ki lô mét trên giờ"),
    ("500 m2", "năm trăm mét vuông"),
    ("20m³", "hai mươi mét khối"),
    ("38°C", "ba mươi tám độ xê"),
    ("-2°C", "âm hai độ xê"),
    ("5 mét", "năm mét"),
    ("2 máy bơm", "hai máy bơm"),
    ("50.000 đồng", "năm mươi nghìn đồng"),
    ("50.000đ", "năm mươi nghìn đồng"),
    ("12.000đ/kg", "mười hai nghìn đồng một ki lô gam"),
    ("200k", "hai trăm nghìn"),
    ("1,5 tỷ đồng", "một phẩy năm tỷ đồng"),
    ("300 USD", "ba trăm đô la Mỹ"),
    # short words
    ("UBND xã", "ủy ban nhân dân xã"),
    ("HĐND huyện", "hội đồng nhân dân huyện"),
    ("MTTQ", "mặt trận tổ quốc"),
    ("BCH Đoàn", "ban chấp hành Đoàn"),
    ("trường THCS", "trường trung học cơ sở"),
    ("TT. Vĩnh Bảo", "thị trấn Vĩnh Bảo"),
    ("TP. Huế", "thành phố Huế"),
    ("TP.HCM", "thành phố Hồ Chí Minh"),
    ("VOV", "vê ô vê"),
    ("VOV1", "vê ô vê một"),
    ("QL1A", "quốc lộ một A"),
    ("CA xã", "công an xã"),
    ("ĐÊM CA NHẠC", "ĐÊM CA NHẠC"),
    ("PCTT&TKCN", "phòng, chống thiên tai và tìm kiếm cứu nạn"),
    ("dịch COVID-19", "dịch cô vít mười chín"),
    ("lớp NCKH", "lớp en nờ xê ca hát"),
    ("FPT", "ép pê tê"),
    ("số 39/2020/TT-BTTTT", "số ba mươi chín năm hai nghìn không trăm hai mươi thông tư bộ thông tin và truyền thông"),
    ("12/QĐ-UBND", "mười hai quyết định ủy ban nhân dân"),
    ("TT 39/2020", "thông tư ba mươi chín năm hai nghìn không trăm hai mươi"),
    # telephones
    ("0912345678", "không chín một hai, ba bốn năm, sáu bảy tám"),
    ("0225.123.456", "không hai hai năm, một hai ba, bốn năm sáu"),
    ("0912 345 678", "không chín một hai, ba bốn năm, sáu bảy tám"),
    ("gọi 114", "gọi một một bốn"),
    ("1900 1234", "một chín không không, một hai ba bốn"),
    ("có 114 hộ", "có một trăm mười bốn hộ"),
    # Roman numerals, only where they are numerals
    ("báo động III", "báo động ba"),
    ("cấp I, II và III", "cấp một, hai và ba"),
    ("lần thứ XIII", "lần thứ mười ba"),
    ("quý IV/2026", "quý bốn năm hai nghìn không trăm hai mươi sáu"),
    ("thế kỷ XXI", "thế kỷ hai mươi mốt"),
    ("vitamin C, I", "vitamin C, I"),
    # signs and addresses
    ("xã A & xã B", "xã A và xã B"),
    ("xem tại xa.gov.vn", "xem tại xa chấm gov chấm vn"),
    ("a@b.vn", "a a còng b chấm vn"),
    ("H5N1", "H năm N một"),
]


@pytest.mark.parametrize(("number", "words"), NUMBERS.items())
def test_numbers_are_read_as_schools_teach_it(number: int, words: str):
    assert read_number(number) == words


@pytest.mark.parametrize(("written", "spoken"), TEXTS, ids=[written for written, _ in TEXTS])
def test_what_is_written_short_is_said_in_full(written: str, spoken: str):
    assert normalise(written) == spoken


def test_a_whole_notice():
    notice = (
        "UBND xã thông báo: 19h30 ngày 05/3/2026 họp dân tại NVH thôn 4. Mỗi hộ nộp 50.000đ. Liên hệ: 0912 345 678."
    )
    assert normalise(notice) == (
        "ủy ban nhân dân xã thông báo: mười chín giờ ba mươi phút ngày năm tháng ba năm hai nghìn không trăm hai mươi "
        "sáu họp dân tại nhà văn hóa thôn bốn. Mỗi hộ nộp năm mươi nghìn đồng. Liên hệ: không chín một hai, "
        "ba bốn năm, sáu bảy tám."
    )


def test_a_communes_own_dictionary_wins():
    own = {"Krông Pắc": "Crông Bắc", "UBND": "ủy ban", "nvh": "nhà văn hóa lớn"}
    assert normalise("UBND Krông Pắc, NVH", own) == "ủy ban Crông Bắc, nhà văn hóa lớn"


def test_text_typed_on_another_keyboard_is_the_same_text():
    assert normalise("Ủy ban, 2 hộ nghèo") == "Ủy ban, hai hộ nghèo"


@pytest.mark.parametrize("hostile", ["[[h@'loU]]", "\x01 150s", "a\x00b", "\u202eđảo", "<speak>x</speak>"])
def test_what_the_engine_would_obey_is_taken_out(hostile: str):
    said = normalise(hostile)
    assert not set("\x00\x01\u202e<>[]") & set(said)


@pytest.mark.parametrize(("written", "spoken"), [("0", "không"), ("12.345", "mười hai nghìn ba trăm bốn mươi lăm")])
def test_decimals_alone(written: str, spoken: str):
    assert read_decimal(written) == spoken


def test_digits_alone():
    assert read_digits("1-0 2") == "một không hai"


# ------------------------------------------------------------------------------------------------------------ voices


@pytest.mark.parametrize("voice", Voice)
async def test_each_voice_speaks_a_notice(voice: Voice):
    pcm = await EspeakSpeaker().say("Kính mời bà con đến họp lúc 19h30.", voice)
    assert 2.0 < len(pcm) / 2 / SAMPLE_RATE_HZ < 8.0
    assert -30 < dbfs(float((to_float(pcm_of(pcm)) ** 2).mean()) ** 0.5) < -6


async def test_the_three_voices_are_three():
    spoken = [await EspeakSpeaker().say("Thông báo của xã", voice) for voice in Voice]
    assert len(set(spoken)) == 3


async def test_the_same_text_sounds_the_same_twice():
    assert await EspeakSpeaker().say("Bản tin", Voice.NORTH) == await EspeakSpeaker().say("Bản tin", Voice.NORTH)


async def test_a_text_that_looks_like_an_option_is_spoken():
    assert await EspeakSpeaker().say("--version -f /etc/passwd", Voice.NORTH)


@pytest.mark.parametrize("text", ["", "   \n", "...", "\x01\x02"])
async def test_nothing_to_say_is_said_so(text: str):
    with pytest.raises(Invalid, match="text_empty"):
        await EspeakSpeaker().say(text, Voice.NORTH)


async def test_a_book_is_no_notice():
    with pytest.raises(Invalid, match="text_too_long"):
        await EspeakSpeaker().say("a " * 20_000, Voice.NORTH)


async def test_a_missing_engine_is_named():
    with pytest.raises(Unavailable, match="program_missing"):
        await EspeakSpeaker(program="/nowhere/espeak-ng").say("xin chào", Voice.NORTH)


async def test_an_engine_that_fails_is_reported():
    with pytest.raises(Unavailable, match="speech_failed"):
        await EspeakSpeaker(program="/bin/false").say("xin chào", Voice.NORTH)


@pytest.mark.skipif(importlib.util.find_spec("espeakng_loader") is None, reason="espeakng-loader is not installed")
async def test_the_library_of_pypi_speaks_as_well(tmp_path: Path):
    program = tmp_path / "espeak"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m broadcast_server.audio.espeak_library "$2" "$4"\n')
    program.chmod(0o755)
    pcm = await EspeakSpeaker(program=str(program)).say("Kính mời bà con đến họp.", Voice.CENTRAL)
    assert len(pcm) / 2 / SAMPLE_RATE_HZ > 1.0
