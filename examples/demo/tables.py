"""What the facts speak of, in Chinese and English: countries, things, colours, months and units."""

from __future__ import annotations

from typing import NamedTuple


class Country(NamedTuple):
    """A country with its capital and continent."""

    zh: str
    en: str
    capital_zh: str
    capital_en: str
    continent: str


class Thing(NamedTuple):
    """A countable noun: Chinese name, its measure word, English plural."""

    zh: str
    measure: str
    en: str


class Unit(NamedTuple):
    """A unit that is `factor` (a power of ten) of a smaller one, in Chinese and English."""

    zh: str
    en: str
    factor: int
    smaller_zh: str
    smaller_en: str


CONTINENTS = {"亚洲": "Asia", "欧洲": "Europe", "非洲": "Africa", "北美洲": "North America", "南美洲": "South America"}

COUNTRIES = tuple(
    Country(*row.split("|"))
    for row in """\
中国|China|北京|Beijing|亚洲
日本|Japan|东京|Tokyo|亚洲
韩国|South Korea|首尔|Seoul|亚洲
越南|Vietnam|河内|Hanoi|亚洲
泰国|Thailand|曼谷|Bangkok|亚洲
老挝|Laos|万象|Vientiane|亚洲
蒙古|Mongolia|乌兰巴托|Ulaanbaatar|亚洲
尼泊尔|Nepal|加德满都|Kathmandu|亚洲
印度|India|新德里|New Delhi|亚洲
伊朗|Iran|德黑兰|Tehran|亚洲
法国|France|巴黎|Paris|欧洲
德国|Germany|柏林|Berlin|欧洲
英国|Britain|伦敦|London|欧洲
西班牙|Spain|马德里|Madrid|欧洲
意大利|Italy|罗马|Rome|欧洲
希腊|Greece|雅典|Athens|欧洲
瑞典|Sweden|斯德哥尔摩|Stockholm|欧洲
挪威|Norway|奥斯陆|Oslo|欧洲
波兰|Poland|华沙|Warsaw|欧洲
葡萄牙|Portugal|里斯本|Lisbon|欧洲
埃及|Egypt|开罗|Cairo|非洲
肯尼亚|Kenya|内罗毕|Nairobi|非洲
加纳|Ghana|阿克拉|Accra|非洲
摩洛哥|Morocco|拉巴特|Rabat|非洲
安哥拉|Angola|罗安达|Luanda|非洲
塞内加尔|Senegal|达喀尔|Dakar|非洲
加拿大|Canada|渥太华|Ottawa|北美洲
古巴|Cuba|哈瓦那|Havana|北美洲
墨西哥|Mexico|墨西哥城|Mexico City|北美洲
牙买加|Jamaica|金斯敦|Kingston|北美洲
巴西|Brazil|巴西利亚|Brasilia|南美洲
秘鲁|Peru|利马|Lima|南美洲
智利|Chile|圣地亚哥|Santiago|南美洲
阿根廷|Argentina|布宜诺斯艾利斯|Buenos Aires|南美洲
哥伦比亚|Colombia|波哥大|Bogota|南美洲
乌拉圭|Uruguay|蒙得维的亚|Montevideo|南美洲""".splitlines()
)

THINGS = tuple(
    Thing(*row.split("|"))
    for row in """\
猫|只|cats
狗|条|dogs
鱼|条|fish
马|匹|horses
牛|头|cows
鸟|只|birds
书|本|books
花|朵|flowers
树|棵|trees
车|辆|cars
船|艘|boats
地图|张|maps
椅子|把|chairs
桌子|张|tables
杯子|个|cups
苹果|个|apples
衬衫|件|shirts
帽子|顶|hats
箱子|只|boxes
伞|把|umbrellas
灯|盏|lamps
笔|支|pens
门|扇|doors
房子|座|houses""".splitlines()
)

COLOURS = dict(
    zip("红蓝绿黄白黑灰紫", ["red", "blue", "green", "yellow", "white", "black", "grey", "purple"], strict=True)
)

MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]

UNITS = (
    Unit("公里", "kilometres", 1000, "米", "metres"),
    Unit("米", "metres", 100, "厘米", "centimetres"),
    Unit("厘米", "centimetres", 10, "毫米", "millimetres"),
    Unit("公斤", "kilograms", 1000, "克", "grams"),
    Unit("吨", "tonnes", 1000, "公斤", "kilograms"),
    Unit("升", "litres", 1000, "毫升", "millilitres"),
    Unit("元", "yuan", 10, "角", "jiao"),
    Unit("角", "jiao", 10, "分", "fen"),
    Unit("世纪", "centuries", 100, "年", "years"),
)
