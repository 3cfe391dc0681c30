"Build metadata that does not change lives in pyproject.toml; what is installed lives in settings.ini. This joins the two."
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

cfg = ConfigParser(interpolation=None)
cfg.read(Path(__file__).with_name('settings.ini'), encoding='utf-8')
cfg = cfg['DEFAULT']


def lines(name: str) -> list[str]: return [l.strip() for l in cfg.get(name, '').splitlines() if l.strip()]


setup(
    version=cfg['version'],
    install_requires=lines('requirements'),
    extras_require={'cluster': lines('cluster_requirements'), 'export': lines('export_requirements'), 'dev': lines('dev_requirements')},
    entry_points={'console_scripts': lines('console_scripts'), 'nbdev': ['mammo=mammo._modidx:d']},
)
