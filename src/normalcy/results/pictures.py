"""Anomaly maps as PNG files to look at: made when somebody asks for them, as nothing in normalcy reads them."""

from __future__ import annotations

import base64
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np

from normalcy.arrays import Float32
from normalcy.data.images import encode_png, read_raw
from normalcy.results.folder import MAPS, ResultsFolder
from normalcy.results.names import named
from normalcy.results.run import MapRange
from normalcy.results.writer import Writer


def picture(values: Float32, span: MapRange) -> bytes:
    """A map (H, W) as a PNG in the inferno colours; ``span`` is the common range, so that pictures can be compared."""
    low, high = span
    scaled = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    return encode_png(np.rint(scaled * 255).astype(np.uint8), _palette())


def picture_map(writer: Writer, base: str, span: MapRange) -> bool:
    """Write the picture of a map from the map as it was written; whether there is one."""
    file = next((f for f in (writer.path("maps", named(base, suffix)) for suffix in MAPS) if f.exists()), None)
    values = None if file is None else read_raw(file)
    if values is None or values.ndim != 2:
        return False
    writer.bytes(f"maps/{base}.png", picture(np.asarray(values, np.float32), span))
    return True


def write_pictures(read: ResultsFolder) -> int:
    """``maps/<file>.png`` beside each anomaly map (H, W) of a results folder, to look at, in the common range; their number.

    Raises DataError for a map that is damaged.
    """
    span = read.run.map_range
    if span is None:
        return 0  # there are no maps
    _palette()  # before there are threads: base64 fills a table of its own when it is first used, without a lock
    writer = Writer(read.folder)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return sum(pool.map(lambda base: picture_map(writer, base, span), read.files))


# -- private -----------------------------------------------------------------------------------------------------------


@cache
def _palette() -> bytes:
    """The 256 colours of Matplotlib's inferno (CC0), red, green, blue; Matplotlib itself takes long to import."""
    return base64.b85decode(
        "000C500jX71_1#G0s#sF0t^BI4g&%Z1OpNT0~7@W7X}0w2L&4l1sw?n9|{K|3kM_&2qp~(DGmuM5D6_23NR81G879m6$>{O3pp4J"
        "JQ)l=8w^1l3_~6aMIQ`EAq+|*3``^pPbLgeC<{|53sox%S1k)!FA7^R3S2S@UNj0{HVI)k31T@3V>=0CJqcw#31&bFXF>{SL<(p{"
        "3Ta0RYDo)fN(^gE3~NmdY)=hrQ4VZU4sBEqZB-9#R}gMl5N=u#Zd?*>T@r3z6K-J>ZekQ}WEE~@6>eu1ZfO>7Y8P&77;bGCZf_ZG"
        "aT#uM8g6tNZgm@OcN}ea9Bq0XZG0VVeI9Lp9&CUgY=R(cgdl5$A!~;rYltFhiXv)^BWaBzX^$jnkR@o6C1{f-XO$*rmnUYJCuW)`"
        "Wt%Bvohf9WDr2B3W1=f!qby;iEMTTBV5lx%sV-itFJ7%MU9K=(urXV)GFr1TTC_7+wlr9`HCMScR=PG-yf;+6I8(nlQouS<!8%aG"
        "J5R(sPR2b=$39HRKTFC$O3Oh>%tA=cLr2d<M$kn?(ndtnM?=&|Le)w^*GoUxOg`C7J=#t@+fX~*Q99mIINwt@;8ix^RyE>RG~-z_"
        "<XSQ1TrlQcFXvt^=wL1BVJqrmD(hq^>t-nIXD01wCGKh@?`$LQZXxh*An|b@@pB#WbR6?`8}oP>^m!Qddl&V67507<_J9-jf)e+H"
        "5cq`;_=gVoi46IR3;B!+`Hl(tkO=yc2l|u;`<4d#mj?Tp2K$=^`<(~;p9lP*2>hc7{G|%~rVRY34g9JP{HziDt`hvP6#TLl{InSR"
        "wi^4m9s9Z;`@A9hz9ag;Ci=oC`ot>w#x42BFZszb`O7u<%{TbZI``2%_tQZ3)kF5zM)lcA_1jGJ-B0x2Q}p3h^W$3c<z4dTVe;r@"
        "^6F{v>}~Pwaq;hU@$q@`@_q93g7fu;^Y)7L_>T4YlJ@$R`1_jq{GIy!q5S`("
    )
