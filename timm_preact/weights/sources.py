"""Where published weights lie, who made them, and what their makers measured: one row a registered 'name.tag'.

Errors are top-1 and top-5 errors in percent as the source reports them; nobody measured them here. A checksum is of the
file whose tensors are read: pytorchcv publishes the sha1 of the .pth inside its .zip, Keras the md5 of its .h5, FAIR
nothing. akamaster and chenyaofo publish the first eight digits of the sha256, in a file's name as torch.hub reads it;
where a file was at hand here, all of its digits are known. For timm's files the Hub states the sha256; that of two of
them was read there.
"""
from typing import Dict, NamedTuple, Optional, Tuple

__all__ = ['CONVERSIONS', 'LICENSES', 'SOURCES', 'Source']

PYTORCHCV = 'https://github.com/osmr/imgclsmob'
FAIR = 'https://github.com/facebookarchive/fb.resnet.torch'
AKAMASTER = 'https://github.com/akamaster/pytorch_resnet_cifar10'
CHENYAOFO = 'https://github.com/chenyaofo/pytorch-cifar-models'
KERAS = 'https://storage.googleapis.com/tensorflow/keras-applications/resnet'
TIMM = 'https://github.com/huggingface/pytorch-image-models'

# What a licence's identifier on the Hub cannot say
LICENSES = {FAIR: 'BSD 3-clause with an additional grant of patent rights (PATENTS, version 2)'}
# What a conversion is and how it is tested, where it is another than that of most
CONVERSIONS = {
    AKAMASTER: """\
The tensors are theirs, renamed, their channels in the order that our shortcuts ask for; the conversion is tested by
logits against their network as the tests write it anew.""",
    CHENYAOFO: """\
The tensors are theirs, renamed; the conversion is tested by logits against their network as the tests write it
anew.""",
}


class Source(NamedTuple):
    """One published file.

    Attributes:
        url: Address of the file, or of the repository on the Hub; a .pth.zip holds one .pth.
        checksum: 'sha1:...', 'md5:...' or 'sha256:...', at least the digits that the publisher states; None if the
            publisher states none.
        origin: Project that published it.
        upstream: Its name there.
        license: Identifier on the Hub.
        reported: (top-1, top-5) errors in percent as published, None where not published.
        protocol: How they were measured.
        hub: Repository on the Hub whose model.safetensors is the file; None for a file that is fetched by `url`.
    """
    url: str
    checksum: Optional[str]
    origin: str
    upstream: str
    license: str
    reported: Tuple[Optional[float], Optional[float]]
    protocol: str
    hub: Optional[str] = None


def _pytorchcv(upstream: str, error: str, release: str, sha1: str, reported: Tuple, protocol: str) -> Source:
    return Source(
        url=f'{PYTORCHCV}/releases/download/{release}/{upstream}-{error}-{sha1[:8]}.pth.zip', checksum=f'sha1:{sha1}',
        origin=PYTORCHCV, upstream=upstream, license='mit', reported=reported, protocol=protocol)


# name: (upstream, error in the file name, release, sha1, reported errors)
_IMAGENET = {
    'preact_resnet18': (
        'preresnet18', '0972', 'v0.0.140', '5651bc2dbb200382822a6b64375d240f747cc726', (28.43, 9.72)),
    'preact_resnet34': (
        'preresnet34', '0774', 'v0.0.300', 'fd5bd1e883048e29099768465df2dd9e891803f4', (24.89, 7.74)),
    'preact_resnet50': (
        'preresnet50b', '0655', 'v0.0.307', '8b60378ee3aed878d27a2b4a9ddc596a812c7649', (22.51, 6.55)),
    'preact_resnet101': (
        'preresnet101b', '0556', 'v0.0.351', '76bfe6d020b55f163e77de6b1c27be6b0bed8b7b', (21.04, 5.56)),
    'preact_resnet152': (
        'preresnet152b', '0459', 'v0.0.523', '42c9fbcfe4e92463497fa4c2d0b007a191c6c043', (19.23, 4.59)),
    'preact_resnet200': (
        'preresnet200b', '0468', 'v0.0.529', 'f82215f3a5616098e8172a85bb42071f1823a27d', (19.07, 4.68)),
}

# depth: (upstream without data set, {data set: (top-1 error, release, sha1)})
_CIFAR = {
    20: ('preresnet20', {
        'cifar10': ('6.51', 'v0.0.164', '76cec68d11de5b25be2ea5935681645b76195f1d'),
        'cifar100': ('30.22', 'v0.0.187', '3dbfa6a2b850572bccb28cc2477a0e46c24abcb8'),
        'svhn': ('3.22', 'v0.0.269', 'c3c00fed49c1d6d9deda6436d041c5788d549299'),
    }),
    56: ('preresnet56', {
        'cifar10': ('4.49', 'v0.0.164', 'e9124fcf167d8ca50addef00c3afa4da9f828f29'),
        'cifar100': ('25.05', 'v0.0.188', 'ca90a2be6002cd378769b9d4e7c497dd883d31d9'),
        'svhn': ('2.80', 'v0.0.269', 'b51b41476710c0e2c941356ffe992ff883a3ee87'),
    }),
    110: ('preresnet110', {
        'cifar10': ('3.86', 'v0.0.164', 'cc08946a2126a1224d1d2560a47cf766a763c52c'),
        'cifar100': ('22.67', 'v0.0.191', '3954e91581b7f3e5f689385d15f618fe16e995af'),
        'svhn': ('2.79', 'v0.0.269', 'aa49e0a3c4a918e227ca2d5a5608704f026134c3'),
    }),
    164: ('preresnet164bn', {
        'cifar10': ('3.64', 'v0.0.196', '429012d412e82df7961fa071f97c938530e1b005'),
        'cifar100': ('20.18', 'v0.0.192', 'a8e67ca6e14f88b009d618b0e9b554312d862174'),
        'svhn': ('2.58', 'v0.0.269', '94d42de440d5f057a38f4c8cdbdb24acfee3981c'),
    }),
    272: ('preresnet272bn', {
        'cifar10': ('3.25', 'v0.0.389', '1a6a016eb4e4a5549c1fcb89ed5af4c1e5715b72'),
        'cifar100': ('19.63', 'v0.0.389', '6fe0d2e24a60d12ab6b3d0e46065e2f14a46bc0b'),
        'svhn': ('2.34', 'v0.0.389', 'c04ef5c20a53f76824339fe75185d181be4bce61'),
    }),
    542: ('preresnet542bn', {
        'cifar10': ('3.14', 'v0.0.391', '66fd6f2033dff08428e586bcce3e5151ed4274f9'),
        'cifar100': ('18.71', 'v0.0.391', '07f1fb258207d295789981519e8dab892fc08f8d'),
        'svhn': ('2.36', 'v0.0.391', '6bdf92368873ce1288526dc405f15e689a1d3117'),
    }),
    1001: ('preresnet1001', {
        'cifar10': ('2.65', 'v0.0.209', '9fedfe5fd643e7355f1062a6db68da310c8962be'),
        'cifar100': ('18.41', 'v0.0.283', '88f14ed9df1573e98b0ec2a07009a15066855fda'),
    }),
    1202: ('preresnet1202', {
        'cifar10': ('3.39', 'v0.0.246', '6fc686b02191226f39e25a76fc5da26857f7acd9'),
    }),
}

# depth: (sha256, of which eight digits are published, top-1 error)
_AKAMASTER = {
    20: ('12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8', 8.27),
    32: ('d509ac1820d7f25398913559d7e81a13229b1e7adc5648e3bfa5e22dc137f850', 7.37),
    44: ('014dd6541728a1c700b1642ab640e211dc6eb8ed507d70697458dc8f8a0ae2e4', 6.90),
    56: ('4bfd97631478d6b638d2764fd2baff3edb1d7d82252d54439343b6596b9b5367', 6.61),
    110: ('1d1ed7c2', 6.32),
    1202: ('f3b1deed', 6.18),
}

# depth: {data set: (first digits of the sha256, top-1 and top-5 accuracy)}
_CHENYAOFO = {
    20: {'cifar10': ('4118986f', 92.60, 99.81), 'cifar100': ('23dac2f1', 68.83, 91.01)},
    32: {'cifar10': ('ef93fc4d', 93.53, 99.77), 'cifar100': ('84213ce6', 70.16, 90.89)},
    44: {'cifar10': ('2a3cabcb', 94.01, 99.77), 'cifar100': ('ffe32858', 71.63, 91.58)},
    56: {'cifar10': ('187c023a', 94.37, 99.83), 'cifar100': ('f2eff4c8', 72.63, 91.94)},
}

# depth: (md5, reported errors)
_KERAS = {
    50: ('3ef43a0b657b3be2300d5770ece849e0', (24.040, 6.966)),
    101: ('6343647c601c52e1368623803854d971', (22.766, 6.184)),
    152: ('a49b44d1979771252814e80f8ec446f9', (21.968, 5.838)),
}

# depth: (tag, sha256, reported errors at 288x288)
_TIMM = {
    18: ('ra4_e3600_r224_in1k', '8cbd1843d961f937eed89815af452c0dcc63f0bb5c54b60a4cd8ed5fc66ffb3e', (24.636, 7.308)),
    34: ('ra4_e3600_r224_in1k', '248e47c20c4e9b995099b5e39d8fb3396efd01d8b4befa2567eebcfa55ab5601', (20.930, 5.440)),
    50: ('a1h_in1k', None, (18.594, 4.288)),
    101: ('a1h_in1k', None, (16.998, 3.556)),
}

SOURCES: Dict[str, Source] = {
    **{f'{name}.pcv_in1k': _pytorchcv(*row, protocol='224x224, crop 0.875') for name, row in _IMAGENET.items()},
    **{
        f'preact_resnet{depth}_pcv.{data}': _pytorchcv(
            f'{upstream}_{data}', error.replace('.', '').rjust(4, '0'), release, sha1, (float(error), None), '32x32')
        for depth, (upstream, files) in _CIFAR.items()
        for data, (error, release, sha1) in files.items()
    },
    **{
        f'preact_resnet{depth}_orig.aka_cifar10': Source(
            url=f'{AKAMASTER}/raw/master/pretrained_models/resnet{depth}-{sha256[:8]}.th', checksum=f'sha256:{sha256}',
            origin=AKAMASTER, upstream=f'resnet{depth}', license='bsd-2-clause', reported=(error, None),
            protocol='32x32')
        for depth, (sha256, error) in _AKAMASTER.items()
    },
    **{
        f'preact_resnet{depth}_orig_chen.{data}': Source(
            url=f'{CHENYAOFO}/releases/download/resnet/{data}_resnet{depth}-{sha256}.pt', checksum=f'sha256:{sha256}',
            origin=CHENYAOFO, upstream=f'{data}_resnet{depth}', license='bsd-3-clause',
            reported=(round(100 - top1, 2), round(100 - top5, 2)), protocol='32x32, best epoch on the test set')
        for depth, files in _CHENYAOFO.items()
        for data, (sha256, top1, top5) in files.items()
    },
    'preact_resnet200_fb.in1k': Source(
        url='https://d2j0dndfm35trm.cloudfront.net/resnet-200.t7', checksum=None, origin=FAIR, upstream='resnet-200.t7',
        license='bsd-3-clause', reported=(21.66, 5.79), protocol='224x224, crop 0.875; the paper has 20.1 and 4.8 at '
        '320x320'),
    **{
        f'preact_resnet{depth}_keras.in1k': Source(
            url=f'{KERAS}/resnet{depth}v2_weights_tf_dim_ordering_tf_kernels.h5', checksum=f'md5:{md5}',
            origin='https://keras.io/api/applications/resnet', upstream=f'ResNet{depth}V2', license='apache-2.0',
            reported=reported, protocol='299x299')
        for depth, (md5, reported) in _KERAS.items()
    },
    **{
        f'preact_resnet{depth}_timm.{tag}': Source(
            url=f'https://huggingface.co/timm/resnetv2_{depth}.{tag}', checksum=sha256 and f'sha256:{sha256}',
            origin=TIMM, upstream=f'resnetv2_{depth}.{tag}', license='apache-2.0', reported=reported,
            protocol='288x288, crop 1.0', hub=f'timm/resnetv2_{depth}.{tag}')
        for depth, (tag, sha256, reported) in _TIMM.items()
    },
}
